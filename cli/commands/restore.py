"""`ragembed restore`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from ragembed.cli.options import FOLDER, Settings, as_json, common
from ragembed.cli.text import count, name
from ragembed.index.backup import restore
from ragembed.types import to_json


@click.command("restore", short_help="Make an index out of a backup.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="In place of an index, which is kept beside it.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, source: Path, replace: bool, as_json: bool) -> int:
    """Make an index out of the backup in SRC, at --index DIR or in ./.ragembed.

    The backup is checked first. Exits with 4 when it is damaged; nothing is changed then.
    """
    directory = Path(settings.directory or os.environ.get("RAGEMBED_INDEX") or FOLDER)
    report = restore(source, directory, replace=replace)
    if as_json:
        click.echo(json.dumps(to_json(report)))
    elif not settings.quiet:
        click.echo(f"{count(report.documents, 'document')} in {name(report.directory)}")
        if report.replaced:
            click.echo(f"the index that was there is in {name(report.replaced)}")
    return 0
