"""`ragembed ls`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.text import name, table
from ragembed.config import ScanConfig
from ragembed.corpus import Corpus
from ragembed.index.rows import StoredRoot
from ragembed.index.store import Store
from ragembed.readers import explain
from ragembed.retriever import display_path
from ragembed.roots import relative


@click.command("ls", short_help="List documents, or say why a file is or is not indexed.")
@click.option("--why", metavar="PATH", help="Say why a file is or is not in the index.")
@click.option("--skipped", is_flag=True, help="List what the last run left out, and why.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, why: str | None, skipped: bool, as_json: bool) -> int:
    """List documents, or say why a file is or is not indexed."""
    directory, empty = existing_index(settings)
    with Corpus(directory, create=empty, roots=settings.roots) as corpus:
        known = corpus.roots()
        roots = {root.id: os.fsdecode(root.path) for root in known}
        if why is not None:
            with corpus.reading() as store:
                sentence = _why(store, known, why, str(directory))
            click.echo(json.dumps({"path": why, "why": sentence}) if as_json else name(sentence))
            return 0
        if skipped:
            with corpus.reading() as store:
                left_out = store.skipped()
            rows = [
                {"root": roots[root], "path": display_path(path), "code": code, "cause": cause}
                for root, path, code, cause in left_out
            ]
            lines = [f"{name(r['path'])}: {r['code']}, {name(r['cause'])}" for r in rows]
            click.echo(json.dumps(rows) if as_json else "\n".join(lines), nl=bool(as_json or lines))
            return 0
        documents = corpus.documents()
    listed = [
        {
            "id": d.id,
            "kind": "text" if d.root_id is None else "file",
            "root": roots.get(d.root_id, "") if d.root_id is not None else "",
            "path": display_path(d.path),
            "format": d.format,
            "encoding": d.encoding,
            "title": d.title,
            "passages": d.passages,
            "windows": d.windows,
            "tokens": d.tokens,
            "unknown": d.unknown,
            "sha256": d.facts.sha256.hex(),
        }
        for d in documents
    ]
    if as_json:
        click.echo(json.dumps(listed))
        return 0
    rows_of_text = [("passages", "tokens", "unknown", "format", "path")] if documents else []
    rows_of_text += [
        (str(d.passages), str(d.tokens), str(d.unknown), d.format, name(display_path(d.path)))
        for d in documents
    ]
    for line in table(rows_of_text):
        click.echo(line)
    return 0


def _why(store: Store, roots: Sequence[StoredRoot], path: str, directory: str) -> str:
    real = os.path.realpath(os.fsencode(path))
    # The path itself may be a symbolic link, which is what the answer is about.
    shown = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(os.fsencode(path)))),
                         os.path.basename(os.path.abspath(os.fsencode(path))))  # fmt: skip
    for root in roots:
        inside = relative(root.path, shown)
        if inside is None or (root.file and inside != root.file):
            continue
        for document in store.documents(root.id):
            if document.path == inside:
                return f"{path} is indexed: {document.passages} passages, {document.tokens} tokens"
        for root_id, skipped, code, cause in store.skipped():
            if root_id == root.id and skipped == inside:
                return f"{path} was skipped as {code}: {cause}"
        if root.file:
            return f"{path} is a root of its own and will be read by the next `ragembed index`"
        scan = ScanConfig.from_json(root.scan)
        reason = explain(
            os.fsdecode(root.path), inside, scan, protect=(os.path.abspath(directory),)
        )
        return f"{path}: {reason}"
    place = "is not there and " if not os.path.lexists(real) else ""
    return f"{path} {place}lies in no folder the index knows; `ragembed index {path}` adds it"
