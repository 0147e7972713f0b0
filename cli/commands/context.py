"""`ragembed context`."""

from __future__ import annotations

import json
import sys
from typing import cast

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import count, escape
from ragembed.config import ContextConfig, ContextFormat, RetrievalConfig
from ragembed.corpus import Corpus
from ragembed.types import to_json

_DEFAULT = ContextConfig()


@click.command("context", short_help="Print grounding text for a question, with sources.")
@click.argument("question")
@click.option(
    "--max-tokens",
    type=int,
    default=_DEFAULT.max_tokens,
    show_default=True,
    help="Bound on all of the text, headers included.",
)
@click.option(
    "--tokenizer",
    default=_DEFAULT.tokenizer,
    show_default=True,
    metavar="NAME",
    help="Counts the budget: a tiktoken encoding, or the path of a tokenizer.json.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["markdown", "xml", "json", "messages"]),
    default=_DEFAULT.format,
    show_default=True,
)
@click.option(
    "--candidates", type=int, default=200, show_default=True, help="Passages taken from each leg."
)
@as_json
@common
@click.pass_obj
def command(
    settings: Settings,
    question: str,
    max_tokens: int,
    tokenizer: str,
    layout: str,
    candidates: int,
    as_json: bool,
) -> int:
    """Print grounding text for a question, with sources.

    The best passages, whole where they fit, never more than --max-tokens in all. With --json also
    the exact span and hash of every source, and what was left out.
    """
    directory, empty = existing_index(settings)
    retrieval = RetrievalConfig(candidates=candidates)
    with Corpus(directory, create=empty, roots=settings.roots, retrieval=retrieval) as corpus:
        result = corpus.context(
            question,
            max_tokens=max_tokens,
            tokenizer=tokenizer,
            format=cast(ContextFormat, layout),
        )
    if as_json:
        click.echo(json.dumps(to_json(result)))
        return 0
    if result.text:
        # Elsewhere than on a terminal the text is data, and its tokens have been counted.
        plain = layout in ("json", "messages") or not sys.stdout.isatty()
        click.echo(result.text if plain else escape(result.text))
    if not settings.quiet:
        click.echo(
            f"{count(len(result.sources), 'source')}, {result.tokens:,} of "
            f"{count(max_tokens, 'token')} ({result.tokenizer}), "
            f"{count(len(result.omitted), 'span')} left out",
            err=True,
        )
    return 0
