"""`ragembed verify`."""

from __future__ import annotations

import json

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import name
from ragembed.index.lock import create_index
from ragembed.index.verify import verify
from ragembed.types import Verification, to_json

DAMAGED = 4


@click.command("verify", short_help="Check the index against itself.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, as_json: bool) -> int:
    """Check the index against itself: structure, checksums, spans, FAISS, tantivy.

    Exits with 4 when something is damaged.
    """
    directory, empty = existing_index(settings)
    if empty:
        create_index(directory)
    problems = tuple(verify(directory))
    if as_json:
        click.echo(json.dumps(to_json(Verification(ok=not problems, problems=problems))))
    else:
        for problem in problems:
            click.echo(f"{problem.kind}: {name(problem.where)}; {problem.remedy}")
        if not problems and not settings.quiet:
            click.echo("ok")
    return DAMAGED if problems else 0
