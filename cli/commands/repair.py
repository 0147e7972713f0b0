"""`ragembed repair`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import count, name
from ragembed.corpus import Corpus
from ragembed.index.lock import create_index
from ragembed.index.salvage import RepairReport, repair

LOST = 4


@click.command("repair", short_help="Mend a damaged index, or save what is whole of it.")
@click.option(
    "--into",
    metavar="NEW",
    type=click.Path(path_type=Path),
    help="A new folder for what can be saved of a damaged database.",
)
@as_json
@common
@click.pass_obj
def command(settings: Settings, into: Path | None, as_json: bool) -> int:
    """Mend a damaged index, or save what is whole of it into a new one.

    Derived files (FAISS, tantivy) are built again in place. A damaged database is never changed: with
    --into, all that is whole of it goes into a new index. Exits with 4 when something was lost.
    """
    directory, empty = existing_index(settings)
    if empty:
        create_index(directory)
    report = repair(directory, into)
    if report.texts:
        with Corpus(report.into, create=False) as corpus:
            corpus.add(report.texts)
    if as_json:
        click.echo(json.dumps(_plain(report)))
    else:
        _print(report, quiet=settings.quiet)
    return LOST if report.lost else 0


def _plain(report: RepairReport) -> dict[str, object]:
    """The report as JSON; of texts their ids."""
    return {
        "rebuilt": list(report.rebuilt),
        "saved": report.saved,
        "lost": list(report.lost),
        "texts": [text.id for text in report.texts],
        "into": report.into,
    }


def _print(report: RepairReport, *, quiet: bool) -> None:
    for path in report.lost:
        click.echo(f"lost: {name(path)}", err=True)
    if quiet:
        return
    if report.into:
        click.echo(
            f"{count(report.saved, 'document')} saved, {count(len(report.texts), 'text')} encoded "
            f"again, {len(report.lost):,} lost: {name(report.into)}"
        )
        if report.lost:
            click.echo(f"`ragembed index --index {name(report.into)}` reads lost files again")
    elif report.rebuilt:
        click.echo(f"built again: {', '.join(report.rebuilt)}")
    else:
        click.echo("nothing is damaged")
