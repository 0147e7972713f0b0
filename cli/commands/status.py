"""`ragembed status`."""

from __future__ import annotations

import json

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import name, style, wrap
from ragembed.corpus import Corpus
from ragembed.types import to_json


@click.command("status", short_help="Show what the index holds and what is wrong with it.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, as_json: bool) -> int:
    """Show what the index holds and what is wrong with it."""
    directory, empty = existing_index(settings)
    with Corpus(directory, create=empty) as corpus:
        status = corpus.status()
    if as_json:
        click.echo(json.dumps(to_json(status)))
        return 0
    model = (
        f"{status.model.name}, {status.model.dimension} dimensions"
        if status.documents
        else "none yet"
    )
    rows = [
        ("index", name(str(directory))),
        ("documents", f"{status.documents:,}"),
        ("passages", f"{status.passages:,}"),
        ("windows", f"{status.windows:,}"),
        ("model", name(model)),
        ("on disk", f"{status.disk_bytes / 1e6:,.1f} MB"),
    ]
    rows += [("root", name(root.path)) for root in status.roots]
    for label, value in rows:
        click.echo(f"{style(label.rjust(9), bold=True)}  {value}")
    for problem in status.problems:
        text = f"{problem.kind}: {name(problem.where)}; {problem.remedy}"
        click.echo(style(wrap(text), fg="yellow"), err=True)
    return 0
