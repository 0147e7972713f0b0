"""`ragembed compact`."""

from __future__ import annotations

import json

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import count
from ragembed.corpus import Corpus
from ragembed.types import to_json


@click.command("compact", short_help="Give space back that nothing uses.")
@click.option("--dry-run", is_flag=True, help="Say how much is dead and change nothing.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, dry_run: bool, as_json: bool) -> int:
    """Give space back that nothing uses: free pages, vectors without text, models of long ago.

    The model in use and the one before it are kept. While it runs, the database needs its size again.
    """
    directory, empty = existing_index(settings)
    with Corpus(directory, create=empty) as corpus:
        if dry_run:
            dead = corpus.status().dead_bytes
            click.echo(
                json.dumps({"dead_bytes": dead}) if as_json else f"{dead / 1e6:,.1f} MB are dead"
            )
            return 0
        report = corpus.compact()
    if as_json:
        click.echo(json.dumps(to_json(report)))
    elif not settings.quiet:
        before, after = report.bytes_before / 1e6, report.bytes_after / 1e6
        click.echo(
            f"{before:,.1f} MB before, {after:,.1f} MB after; {count(report.vectors, 'vector')} dropped"
        )
    return 0
