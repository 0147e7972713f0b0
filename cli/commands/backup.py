"""`ragembed backup`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import count, name
from ragembed.index.backup import backup
from ragembed.index.lock import create_index
from ragembed.types import to_json


@click.command("backup", short_help="Copy the index, while it is in use.")
@click.argument("target", metavar="DEST", type=click.Path(path_type=Path))
@as_json
@common
@click.pass_obj
def command(settings: Settings, target: Path, as_json: bool) -> int:
    """Copy the index into DEST, a new or an empty folder; others may read and write meanwhile.

    The copy is of one commit. `ragembed restore` makes an index of it.
    """
    directory, empty = existing_index(settings)
    if empty:
        create_index(directory)
    report = backup(directory, target)
    if as_json:
        click.echo(json.dumps(to_json(report)))
    elif not settings.quiet:
        size = f"{report.bytes / 1e6:,.1f} MB"
        click.echo(f"{count(report.documents, 'document')}, {size}: {name(report.directory)}")
    return 0
