"""`ragembed export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import count, name
from ragembed.index.lock import create_index
from ragembed.index.portable import export_index
from ragembed.progress import bar
from ragembed.types import to_json


@click.command("export", short_help="Write documents and vectors as JSON lines and .npy.")
@click.argument("target", metavar="DEST", type=click.Path(path_type=Path))
@as_json
@common
@click.pass_obj
def command(settings: Settings, target: Path, as_json: bool) -> int:
    """Write documents and vectors into DEST, a new or an empty folder, for other programs to read.

    index.json says what it is, documents.jsonl has a document a line, vectors.npy the vectors.
    """
    directory, empty = existing_index(settings)
    if empty:
        create_index(directory)
    with bar("exporting", None, shown=not (settings.quiet or settings.no_progress)) as advance:
        report = export_index(directory, target, advance)
    if as_json:
        click.echo(json.dumps(to_json(report)))
    elif not settings.quiet:
        click.echo(
            f"{count(report.documents, 'document')}, {count(report.vectors, 'vector')}, "
            f"{report.bytes / 1e6:,.1f} MB: {name(report.directory)}"
        )
    return 0
