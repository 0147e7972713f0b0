"""`ragembed import`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ragembed.cli.options import FOLDER, Settings, as_json, common, find_index
from ragembed.cli.text import name
from ragembed.index.portable import import_index
from ragembed.progress import bar
from ragembed.types import to_json


@click.command("import", short_help="Read what `ragembed export` wrote.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@as_json
@common
@click.pass_obj
def command(settings: Settings, source: Path, as_json: bool) -> int:
    """Read the export in SRC into the index, which is made if there is none; nothing is encoded.

    Documents of the same root and path are replaced. Everything is checked before anything is stored.
    """
    directory = find_index(settings) or Path(FOLDER)
    with bar("importing", None, shown=not (settings.quiet or settings.no_progress)) as advance:
        report = import_index(source, directory, advance)
    if as_json:
        click.echo(json.dumps(to_json(report)))
    elif not settings.quiet:
        click.echo(
            f"{report.added:,} added, {report.replaced:,} replaced in {name(report.directory)}"
        )
    return 0
