"""An index as plain files that other programs can read, and an index out of such files (exchange.py).

Both ways work line by line, and what has to be remembered of all lines is kept in a table on disk. An
import reads everything once to check it before it writes anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import InvalidInput, ModelMismatch
from ragembed.index import exchange, records, schema
from ragembed.index.commit import Writer
from ragembed.index.copying import bytes_below, filling
from ragembed.index.disk import private_opener, storage_errors, sync_directory
from ragembed.index.exchange import DOCUMENTS, HEADER, VECTORS, Header, Table, VectorFile
from ragembed.index.lock import create_index
from ragembed.index.records import ReadRecord
from ragembed.index.rows import StoredModel, StoredRoot
from ragembed.index.store import Store
from ragembed.index.transfer import TransferredDocument, Written, read_document, write_documents

# Called with how many more documents are done.
Listener = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was written."""

    directory: str
    documents: int
    passages: int
    windows: int
    vectors: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What was read: documents that are new, and those that took another's place."""

    directory: str
    added: int
    replaced: int
    passages: int
    windows: int
    vectors: int


# -- out ---------------------------------------------------------------------------------------


def export_index(directory: Path, target: Path, listener: Listener | None = None) -> ExportReport:
    """Write all documents of an index, with their vectors, to a new or empty directory.

    It is of one commit, of the model in use, and the same for the same content, whatever the ids.

    Raises:
        NotAnIndex: something is in the target already.
        IndexDamaged: a document's rows are not what was written; it is named.
        IndexNotFound, IndexVersionError, StorageError.
    """
    store = Store.open(directory)
    with closing(store), storage_errors(target), filling(target), store.snapshot():
        model, roots = store.model(), store.roots()
        chunking = store.setting("chunking")
        with storage_errors(target):
            counts = _write_documents(store, model, roots, target, listener)
            header = Header(
                model, None if chunking is None else json.loads(chunking), tuple(roots), counts
            )
            exchange.write_header(target / HEADER, header)  # last: without it there is no export
            sync_directory(target)
    documents, passages, windows, vectors = counts
    return ExportReport(
        directory=str(target),
        documents=documents,
        passages=passages,
        windows=windows,
        vectors=vectors,
        bytes=bytes_below(target),
    )


def _write_documents(
    store: Store,
    model: StoredModel | None,
    roots: list[StoredRoot],
    target: Path,
    listener: Listener | None,
) -> tuple[int, int, int, int]:
    """The two long files; returns how many documents, passages, windows and vectors they hold."""
    number_of = {root.id: number for number, root in enumerate(roots)}
    documents = passages = windows = 0
    with (
        open(target / DOCUMENTS, "xb", opener=private_opener) as lines,
        open(target / VECTORS, "xb", opener=private_opener) as vectors,
        closing(VectorFile(vectors, model)) as vector_file,
    ):
        for id in _document_ids(store):
            if model is None:
                raise store.damaged(f"document {id} has no model")
            document = read_document(store, model, id)
            row = document.row
            root = None if row.root_id is None else number_of.get(row.root_id)
            if root is None and row.root_id is not None:
                raise store.damaged(f"root {row.root_id} is missing")
            vector_rows = vector_file.put(document)
            lines.write(records.to_line(records.document_record(row, root, vector_rows)))
            documents += 1
            passages += len(row.passages)
            windows += sum(len(passage.windows) for passage in row.passages)
            if listener is not None:
                listener(1)
        vector_file.finish()
        for file in (lines, vectors):
            file.flush()
            os.fsync(file.fileno())
    return documents, passages, windows, vector_file.count


def _document_ids(store: Store) -> Iterator[int]:
    with store.snapshot():
        for (id,) in store.connection.execute(
            "SELECT id FROM document ORDER BY ifnull(root_id, 0), path"
        ):
            yield id


# -- in ----------------------------------------------------------------------------------------


def import_index(source: Path, directory: Path, listener: Listener | None = None) -> ImportReport:
    """Store exported documents with their vectors; makes the index if there is none.

    Documents of the same root and path are replaced. Nothing is written before all was checked.

    Raises:
        InvalidInput: the files do not fit; file, line and what is wrong are named.
        ModelMismatch: the index has vectors of another model, or was cut otherwise.
        NotAnIndex, IndexVersionError, IndexDamaged, IndexLocked, StorageError.
    """
    with storage_errors(source):
        header = exchange.read_header(source / HEADER)
        vectors = exchange.read_vectors(source / VECTORS, header)
        _check_documents(source / DOCUMENTS, header)
    if not schema.exists(directory):
        create_index(directory)
    with Writer(directory) as writer:
        model = _put_model(writer, header)
        root_ids = _put_roots(writer, header.roots)
        written = Written()
        if model is not None:
            read = exchange.read_documents(source / DOCUMENTS, header)
            transferred = _transferred(read, vectors, root_ids)
            written = write_documents(writer, model, transferred, listener)
        writer.finish()
    _, passages, windows, rows = header.counts
    return ImportReport(
        directory=str(directory),
        added=written.added,
        replaced=written.replaced,
        passages=passages,
        windows=windows,
        vectors=rows,
    )


def _check_documents(file: Path, header: Header) -> None:
    """Read all lines once: each by itself, no document twice, one vector for one text."""
    documents = passages = windows = 0
    with closing(Table()) as places, closing(Table()) as rows:
        for record in exchange.read_documents(file, header):
            row = record.row
            root = -1 if record.root is None else record.root
            if places.put(b"%d/%s" % (root, row.path), documents) != documents:
                raise exchange.wrong(file, documents, "the document was there before")
            for key, number in record.vector_rows.items():
                if (other := rows.put(key, number)) != number:
                    what = f"rows {other} and {number} are of the same text"
                    raise exchange.wrong(file, documents, what)
            documents += 1
            passages += len(row.passages)
            windows += sum(len(passage.windows) for passage in row.passages)
    found = (documents, passages, windows)
    if found != header.counts[:3]:
        raise InvalidInput(
            f"{file} holds {documents} documents, {passages} passages, {windows} windows; "
            f"{', '.join(map(str, header.counts[:3]))} are due"
        )


def _transferred(
    read: Iterable[ReadRecord], vectors: NDArray[Any], root_ids: list[int]
) -> Iterator[TransferredDocument]:
    for record in read:
        root_id = None if record.root is None else root_ids[record.root]
        wanted = np.fromiter(record.vector_rows.values(), dtype=np.int64)
        found = np.asarray(vectors[wanted], dtype=np.float32)
        yield TransferredDocument(
            replace(record.row, root_id=root_id), dict(zip(record.vector_rows, found, strict=True))
        )


def _put_model(writer: Writer, header: Header) -> StoredModel | None:
    """The index's model, which has to be the export's; an index that has none takes it."""
    known, wanted = writer.store.model(), header.model
    if wanted is None:
        return known
    if known is None:
        with writer.transaction() as transaction:
            transaction.set("chunking", json.dumps(header.chunking))
            model = transaction.put_model(
                wanted.name, wanted.fingerprint, wanted.dimension, wanted.precision
            )
            transaction.use_model(model)
        return model
    if (known.fingerprint, known.dimension) != (wanted.fingerprint, wanted.dimension):
        raise ModelMismatch(
            f"the index in {writer.directory} holds vectors of {known.name} "
            f"({known.fingerprint[:12]}) and the export those of {wanted.name} "
            f"({wanted.fingerprint[:12]}): import it into a new index"
        )
    chunking = json.loads(writer.store.setting("chunking") or "null")
    if chunking != header.chunking:
        raise ModelMismatch(
            f"the index in {writer.directory} was cut with {chunking} and the export with "
            f"{header.chunking}: import it into a new index"
        )
    return known


def _put_roots(writer: Writer, roots: tuple[StoredRoot, ...]) -> list[int]:
    """The ids of roots; one that the index knows keeps its settings."""
    known = {(root.path, root.file): root.id for root in writer.store.roots()}
    new = [root for root in roots if (root.path, root.file) not in known]
    if new:
        with writer.transaction() as transaction:
            for root in new:
                known[root.path, root.file] = transaction.put_root(root.path, root.file, root.scan)
    return [known[root.path, root.file] for root in roots]
