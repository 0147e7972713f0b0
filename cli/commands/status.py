"""`ragembed status`."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import count, name, style, wrap
from ragembed.corpus import Corpus
from ragembed.types import to_json


@click.command("status", short_help="Show what the index holds and what is wrong with it.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, as_json: bool) -> int:
    """Show what the index holds and what is wrong with it."""
    directory, empty = existing_index(settings)
    with Corpus(directory, create=empty, roots=settings.roots) as corpus:
        status = corpus.status()
    if as_json:
        click.echo(json.dumps(to_json(status)))
        return 0
    model = (
        f"{status.model.name}, {status.model.dimension} dimensions"
        if status.documents
        else "none yet"
    )
    size = f"{status.disk_bytes / 1e6:,.1f} MB"
    if status.dead_bytes:
        size += f", {status.dead_bytes / 1e6:,.1f} MB of it dead (`ragembed compact`)"
    rows = [
        ("index", name(str(directory))),
        ("documents", f"{status.documents:,}"),
        ("passages", f"{status.passages:,}"),
        ("windows", f"{status.windows:,}"),
        ("model", name(model)),
        ("on disk", size),
    ]
    if status.committed:
        rows.append(("committed", f"{status.committed} ({_age(status.committed)} ago)"))
    if status.previous:
        rows.append(("previous", f"{name(status.previous)} (`ragembed reembed --rollback`)"))
    rows += [("root", name(root.path)) for root in status.roots]
    for label, value in rows:
        click.echo(f"{style(label.rjust(9), bold=True)}  {value}")
    for problem in status.problems:
        text = f"{problem.kind}: {name(problem.where)}; {problem.remedy}"
        click.echo(style(wrap(text), fg="yellow"), err=True)
    return 0


def _age(committed: str) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = (datetime.now(timezone.utc) - datetime.fromisoformat(committed)).total_seconds()
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            return count(int(seconds // size), unit)
    return count(max(0, int(seconds)), "second")
