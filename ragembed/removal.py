"""Documents and roots taken out of an index by name, and roots that are somewhere else now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ragembed.errors import InvalidInput
from ragembed.index.commit import Writer
from ragembed.index.rows import StoredDocument, StoredRoot
from ragembed.roots import moved_roots, path_bytes, relative


def move_roots(writer: Writer, moved: Mapping[str, str]) -> None:
    """Write down where roots are now.

    Raises:
        InvalidInput: a path that is no root, or a new place that another root has.
    """
    before = writer.store.roots()
    after = moved_roots(before, moved)
    if after == before:
        return
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    with writer.transaction() as transaction:
        for root in changed:  # two may change places
            transaction.move_root(root.id, b"\0%d" % root.id)
        for root in changed:
            transaction.move_root(root.id, root.path)


def remove_names(
    directory: Path, names: Sequence[str], moved: Mapping[str, str], *, purge: bool = False
) -> int:
    """See `Corpus.remove`."""
    if not all(map(str.strip, names)):
        raise InvalidInput("a name is blank; `ragembed ls` shows what is in the index")
    with Writer(directory) as writer:
        move_roots(writer, moved)
        roots, documents = writer.store.roots(), writer.store.documents()
        chosen: dict[int, StoredDocument] = {}
        forgotten: set[int] = set()
        for name in names:
            hits, whole = _named(name, roots, documents)
            if not hits and not whole:
                raise InvalidInput(
                    f"{name!r} is not in the index; `ragembed ls` shows what is; nothing was removed"
                )
            chosen.update((document.id, document) for document in hits)
            forgotten.update(whole)
        with writer.transaction() as transaction:
            for document in chosen.values():
                transaction.delete_document(document.id)
            for root_id in forgotten:
                transaction.delete_root(root_id)
            if purge:
                transaction.set("purge", "pending")  # whoever writes next goes on, should we die
        if purge:
            writer.scrub()
        writer.finish()
    return len(chosen)


def _named(
    name: str, roots: Sequence[StoredRoot], documents: Sequence[StoredDocument]
) -> tuple[list[StoredDocument], list[int]]:
    """The documents that a name stands for, and the roots that it stands for as a whole."""
    path = path_bytes(name)
    real = os.path.realpath(path)
    hits = [d for d in documents if d.root_id is None and d.path == path]
    whole = []
    for root in roots:
        if real == (os.path.join(root.path, root.file) if root.file else root.path):
            whole.append(root.id)
            hits += [d for d in documents if d.root_id == root.id]
        elif not root.file and (inside := relative(root.path, real)) is not None:
            hits += [
                d
                for d in documents
                if d.root_id == root.id and (d.path == inside or d.path.startswith(inside + b"/"))
            ]
    return hits, whole
