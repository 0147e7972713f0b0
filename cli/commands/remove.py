"""`ragembed remove`."""

from __future__ import annotations

import json

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import count
from ragembed.corpus import Corpus


@click.command("remove", short_help="Take documents or roots out of the index.")
@click.argument("names", nargs=-1, required=True, metavar="PATH|ID...")
@click.option("--purge", is_flag=True, help="Leave nothing of their text in any file of the index.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], purge: bool, as_json: bool) -> int:
    """Take documents or roots out of the index; the files themselves stay.

    A root is forgotten. A file or folder inside a root comes back with the next `ragembed index`
    unless it is excluded or gone by then. With --purge the index's files are rewritten, so that what
    was removed cannot be read from them any more.
    """
    directory, empty = existing_index(settings)
    with Corpus(directory, create=empty, roots=settings.roots) as corpus:
        removed = corpus.remove(names, purge=purge)
    if as_json:
        click.echo(json.dumps({"removed": removed}))
    elif not settings.quiet:
        click.echo(f"{count(removed, 'document')} removed")
    return 0
