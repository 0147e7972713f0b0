"""Repair: derived files in place; of a damaged database, all that is whole into a new index.

A damaged database is never touched up: what a bad disk or a bad program has done to it cannot be known.
Its rows are read one by one (scavenge.py), documents whose rows all fit are taken over with their
vectors (transfer.py), and all others are named.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from ragembed.errors import IndexDamaged
from ragembed.index.commit import Writer
from ragembed.index.copying import put_in_place, refuse_filled, staged
from ragembed.index.disk import refuse_network, storage_errors
from ragembed.index.lock import create_index
from ragembed.index.mend import Part, damaged_database, mend
from ragembed.index.rows import StoredModel, metadata_of
from ragembed.index.scavenge import LeftBehind, scavenge
from ragembed.index.store import Store
from ragembed.index.transfer import (
    TransferredDocument,
    display,
    read_document,
    source_text,
    write_documents,
)
from ragembed.index.verify import verify
from ragembed.types import Document, Format

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """What was done.

    Attributes:
        rebuilt: derived files that were built again in place.
        saved: documents taken over into the new index.
        lost: documents that were not: files that the next `ragembed index` reads again, and texts.
        texts: added texts that are whole but for their passages or vectors; to be added anew.
        into: the new index; empty where the old one was mended.
    """

    rebuilt: tuple[Part, ...] = ()
    saved: int = 0
    lost: tuple[str, ...] = ()
    texts: tuple[Document, ...] = ()
    into: str = ""


def repair(directory: Path, into: Path | None = None) -> RepairReport:
    """Mend an index, or save what is whole of it.

    Args:
        directory: of the damaged index. If only derived files are damaged they are built again; else
            nothing in it is changed.
        into: a new or empty directory for what can be saved of a damaged database.

    Raises:
        IndexDamaged: the database is damaged and `into` was not given, or SQLite cannot open it at all.
        NotAnIndex: something is in `into` already, or `directory` is no index.
        IndexNotFound, IndexVersionError, IndexLocked, StorageError.
    """
    problems = verify(directory)
    if not problems:
        return RepairReport()
    if not damaged_database(problems) or into is None:
        return RepairReport(rebuilt=mend(directory, problems))
    into = Path(os.path.realpath(into))
    refuse_filled(into)
    with storage_errors(into), staged(into) as folder:
        refuse_network(folder)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=into.parent) as rows:
            return _salvage(directory, Path(rows), folder, into)


def _salvage(directory: Path, rows: Path, folder: Path, into: Path) -> RepairReport:
    left_behind = scavenge(directory, rows)
    create_index(folder)
    store = Store.open(rows)
    with closing(store), Writer(folder) as writer:
        salvage = _Salvage(store, writer)
        salvage.run(left_behind)
        writer.finish()
    if problems := verify(folder):
        raise IndexDamaged(f"what was saved of {directory} is not sound: {problems[0].where}")
    put_in_place(folder, into)
    return RepairReport(
        saved=salvage.saved,
        lost=tuple(salvage.lost),
        texts=tuple(salvage.texts),
        into=str(into),
    )


class _Salvage:
    """One run: from a store of rows that are each whole, to the writer of an empty index."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._roots = {root.id: root for root in store.roots()}
        self.saved = 0
        self.lost: list[str] = []
        self.texts: list[Document] = []

    def run(self, left_behind: LeftBehind) -> None:
        """Take over everything; `left_behind` are the documents whose own row was damaged."""
        model, chunking = _model_in_use(self._store), self._store.setting("chunking")
        kind = self._store.setting("faiss")
        new_ids = {}
        target = None
        with self._writer.transaction() as transaction:
            for id, root in self._roots.items():
                new_ids[id] = transaction.put_root(root.path, root.file, root.scan)
            if model is not None and chunking is not None:
                transaction.set("chunking", chunking)
                if kind is not None:
                    transaction.set("faiss", kind)
                target = transaction.put_model(
                    model.name, model.fingerprint, model.dimension, model.precision
                )
                transaction.use_model(target)
        if model is not None and target is not None:
            written = write_documents(self._writer, target, self._whole(model, new_ids))
            self.saved = written.added + written.replaced
        else:
            for id in self._ids():
                self._leave(id)
        self._name_the_rest(left_behind)

    def _ids(self) -> Iterator[int]:
        for (id,) in self._store.connection.execute("SELECT id FROM document ORDER BY id"):
            yield id

    def _whole(self, model: StoredModel, new_ids: dict[int, int]) -> Iterator[TransferredDocument]:
        for id in self._ids():
            try:
                document = read_document(self._store, model, id)
            except IndexDamaged as error:
                logger.warning("not taken over: %s", error)
                self._leave(id)
                continue
            row = document.row
            if row.root_id is None:
                yield document
            elif row.root_id in new_ids:
                yield replace(document, row=replace(row, root_id=new_ids[row.root_id]))
            else:
                self.lost.append(self._name(row.root_id, row.path))

    def _leave(self, id: int) -> None:
        """A document that is not taken over: as a text, if it is one and whole, else by its name."""
        root_id, path, sha256, title, metadata, format, encoding, replaced = (
            self._store.connection.execute(
                "SELECT root_id, path, sha256, title, metadata, format, encoding, replaced "
                "FROM document WHERE id = ?",
                (id,),
            ).fetchone()
        )
        name = self._name(root_id, path)
        text = None
        if root_id is None:
            try:
                text = source_text(self._store, id, name)
            except IndexDamaged as error:
                logger.warning("not taken over: %s", error)
        if text is None or hashlib.sha256(text.encode()).digest() != sha256:
            self.lost.append(name)
            return
        self.texts.append(
            Document(
                id=name,
                text=text,
                title=title,
                metadata=metadata_of(metadata),
                format=cast(Format, format if format in get_args(Format) else "text"),
                encoding=encoding,
                replaced=replaced,
            )
        )

    def _name_the_rest(self, left_behind: LeftBehind) -> None:
        """Documents of whose own row nothing is left but, at best, a name that may be damaged."""
        self.lost += [self._name(root_id, path) for root_id, path in left_behind.values()]
        orphans = self._store.connection.execute(
            "SELECT document_id FROM source UNION SELECT document_id FROM passage "
            "EXCEPT SELECT id FROM document"
        )
        self.lost += [f"document {id}" for (id,) in orphans if id not in left_behind]

    def _name(self, root_id: object, path: bytes) -> str:
        """The place of a file, or the id of a text."""
        root = self._roots.get(root_id) if isinstance(root_id, int) else None
        return display(path if root is None else os.path.join(root.path, path))


def _model_in_use(store: Store) -> StoredModel | None:
    """The model of the vectors that answer; the only one there is, should nothing say which."""
    models, current = store.models(), store.setting("model")
    if current is None:
        return models[0] if len(models) == 1 else None
    return next((model for model in models if str(model.id) == current), None)
