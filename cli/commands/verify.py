"""`ragembed verify`."""

from __future__ import annotations

import json
from typing import cast

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import name
from ragembed.index.lock import create_index
from ragembed.index.verify import Depth, verify
from ragembed.types import Verification, to_json

DAMAGED = 4


@click.command("verify", short_help="Check the index against itself.")
@click.option("--quick", "depth", flag_value="quick", help="Sizes, hashes and counts only.")
@click.option("--deep", "depth", flag_value="deep", help="Also search for stored vectors in FAISS.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, depth: str | None, as_json: bool) -> int:
    """Check the index against itself: structure, checksums, spans, FAISS, tantivy.

    Exits with 4 when something is damaged; `ragembed repair` mends it.
    """
    directory, empty = existing_index(settings)
    if empty:
        create_index(directory)
    problems = tuple(verify(directory, cast(Depth, depth or "default")))
    if as_json:
        click.echo(json.dumps(to_json(Verification(ok=not problems, problems=problems))))
    else:
        for problem in problems:
            click.echo(f"{problem.kind}: {name(problem.where)}; {problem.remedy}")
        if not problems and not settings.quiet:
            click.echo("ok")
    return DAMAGED if problems else 0
