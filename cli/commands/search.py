"""`ragembed search`."""

from __future__ import annotations

import json
from typing import cast

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import hit_text
from ragembed.config import RetrievalConfig
from ragembed.corpus import Corpus
from ragembed.types import Mode, to_json


@click.command("search", short_help="Find the passages that best match a query.")
@click.argument("query")
@click.option("-k", "k", type=int, default=10, show_default=True, help="Number of hits.")
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "dense", "lexical"]),
    default="hybrid",
    show_default=True,
    help="By meaning and words, by meaning, by words.",
)
@click.option(
    "--candidates", type=int, default=200, show_default=True, help="Passages taken from each leg."
)
@as_json
@common
@click.pass_obj
def command(
    settings: Settings, query: str, k: int, mode: str, candidates: int, as_json: bool
) -> int:
    """Find the passages that best match a query.

    Each hit is an exact span of its file. The sentence that matched is underlined on a terminal and
    marked with > elsewhere.
    """
    directory, empty = existing_index(settings)
    retrieval = RetrievalConfig(candidates=candidates)
    with Corpus(directory, create=empty, roots=settings.roots, retrieval=retrieval) as corpus:
        result = corpus.search(query, k=k, mode=cast(Mode, mode))
    if as_json:
        click.echo(json.dumps(to_json(result)))
    elif result.hits:
        click.echo("\n\n".join(hit_text(hit) for hit in result.hits))
    elif not settings.quiet:
        click.echo("nothing found", err=True)
    return 0
