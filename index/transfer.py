"""A whole document out of one index and into another; what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import IndexDamaged, InvalidInput
from ragembed.index.checksums import reading_crc, row_crc, vector_crc, window_crc
from ragembed.index.commit import Writer
from ragembed.index.rows import DocumentRow, FileFacts, PassageRow, StoredModel, WindowRow
from ragembed.index.store import DOCUMENT_SAID, Store, stored_dtype, vectors_from
from ragembed.index.vectors import check_vectors

BATCH_DOCUMENTS = 256
BATCH_WINDOWS = 4096

_DOCUMENT = (
    f"SELECT {DOCUMENT_SAID}, passages, windows, tokens, unknown, crc FROM document WHERE id = ?"
)
_PASSAGES = (
    "SELECT id, document_id, position, start, end, first_line, last_line, page, heading, text, crc "
    "FROM passage WHERE document_id = ? ORDER BY position"
)
_READINGS = (
    "SELECT r.passage_id, r.model_id, r.tokens, r.unknown, r.crc FROM passage p "
    "JOIN reading r ON r.passage_id = p.id WHERE p.document_id = ? AND r.model_id = ?"
)
_WINDOWS = (
    "SELECT w.passage_id, w.model_id, w.position, w.start, w.end, w.vector_id, w.crc, v.id, "
    "v.model_id, v.key, v.data, v.crc FROM passage p JOIN window w ON w.passage_id = p.id "
    "LEFT JOIN vector v ON v.id = w.vector_id WHERE p.document_id = ? AND w.model_id = ? "
    "ORDER BY p.position, w.position"
)


@dataclass(frozen=True, slots=True, eq=False)
class TransferredDocument:
    """A document with the vectors of its windows: key -> unit vector (d,), float32."""

    row: DocumentRow
    vectors: Mapping[bytes, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Written:
    """How many documents were new in an index, and how many took another's place."""

    added: int = 0
    replaced: int = 0


@dataclass(slots=True)
class _Reading:
    """What is known of a document while it is read; `name` is for messages."""

    store: Store
    model: StoredModel
    id: int
    name: str = ""

    def refuse(self, what: str) -> IndexDamaged:
        """The error for something that does not fit."""
        return self.store.damaged(f"{self.name or f'document {self.id}'}: {what}")

    def require(self, fits: object, what: str) -> None:
        """Raise unless something fits."""
        if not fits:
            raise self.refuse(what)


def read_document(store: Store, model: StoredModel, document_id: int) -> TransferredDocument:
    """A document as a model reads it, every row of it checked.

    Checked are all checksums, that the text can be unpacked, that each passage is the text at its span,
    that each window lies in its passage and its vector is that of its text, and that the document's
    figures are those of its rows.

    Raises:
        IndexDamaged: something does not fit; the message names the document.
    """
    reading = _Reading(store, model, document_id)
    try:
        return _read(reading)
    except sqlite3.OperationalError:
        raise  # the disk, not the rows
    except sqlite3.DatabaseError as error:
        raise reading.refuse(str(error)) from error


def source_text(store: Store, document_id: int, name: str) -> str:
    """The text of a document; raises IndexDamaged, which names it."""
    try:
        return store.source_text(document_id)
    except IndexDamaged:
        raise store.damaged(f"{name}: its text") from None


def _read(reading: _Reading) -> TransferredDocument:
    connection = reading.store.connection
    row = connection.execute(_DOCUMENT, (reading.id,)).fetchone()
    reading.require(row, "it is missing")
    *said, passage_count, window_count, tokens, unknown, crc = row
    id, root_id, path, sha256, size, mtime_ns, inode, checked_ns, *words, metadata, replaced = said
    if isinstance(path, bytes):
        reading.name = display(path)
    reading.require(row_crc(*said) == crc, "its row")
    text = source_text(reading.store, id, reading.name)
    if root_id is None:
        reading.require(hashlib.sha256(text.encode()).digest() == sha256, "its text is another")
    vectors: dict[bytes, NDArray[np.float32]] = {}
    passages = _passages(reading, text, vectors)
    found = [
        len(passages),
        sum(len(passage.windows) for passage in passages),
        sum(passage.tokens for passage in passages),
        sum(passage.unknown for passage in passages),
    ]
    due = [passage_count, window_count, tokens, unknown]
    reading.require(found == due, f"{found} passages, windows, tokens, unknown; {due} are due")
    format, encoding, language, title = words
    document = DocumentRow(
        root_id=root_id,
        path=path,
        facts=FileFacts(sha256, size, mtime_ns, inode, checked_ns),
        format=format,
        encoding=encoding,
        language=language,
        title=title,
        metadata=json.loads(metadata),
        replaced=replaced,
        text=text,
        passages=passages,
    )
    return TransferredDocument(document, vectors)


def _passages(
    reading: _Reading, text: str, vectors: dict[bytes, NDArray[np.float32]]
) -> tuple[PassageRow, ...]:
    connection = reading.store.connection
    rows = connection.execute(_PASSAGES, (reading.id,)).fetchall()
    counts = {}
    for row in connection.execute(_READINGS, (reading.id, reading.model.id)):
        reading.require(reading_crc(*row[:4]) == row[4], f"token counts of passage {row[0]}")
        counts[row[0]] = row[2:4]
    windows = _windows(reading, text, vectors)
    passages = []
    for n, row in enumerate(rows):
        id, _, position, start, end, first_line, last_line, page, heading, said, crc = row
        reading.require(row_crc(*row[:-1]) == crc and position == n, f"passage {id}")
        reading.require(text[start:end] == said, f"passage {id} is not the text at its span")
        reading.require(id in counts, f"passage {id} has no token counts")
        own = windows.pop(id, [])
        inside = all(start <= window.start < window.end <= end for window in own)
        reading.require(own and inside, f"windows of passage {id}")
        tokens, unknown = counts[id]
        passages.append(
            PassageRow(
                start=start,
                end=end,
                lines=None if first_line is None else (first_line, last_line),
                page=page,
                heading=tuple(json.loads(heading)),
                tokens=tokens,
                unknown=unknown,
                text=said,
                windows=tuple(own),
            )
        )
    return tuple(passages)


def _windows(
    reading: _Reading, text: str, vectors: dict[bytes, NDArray[np.float32]]
) -> dict[int, list[WindowRow]]:
    """Windows by passage; their vectors go into `vectors`."""
    model = reading.model
    size = model.dimension * np.dtype(stored_dtype(model.precision)).itemsize
    found: dict[int, list[WindowRow]] = {}
    keys: list[bytes] = []
    blobs: list[bytes] = []
    for row in reading.store.connection.execute(_WINDOWS, (reading.id, model.id)):
        passage_id, _, position, start, end, vector_id, crc = row[:7]
        own = found.setdefault(passage_id, [])
        reading.require(
            window_crc(*row[:6]) == crc and position == len(own), f"windows of passage {passage_id}"
        )
        id, owner, key, data, vector_sum = row[7:]
        reading.require(
            id is not None and vector_crc(id, owner, key, data) == vector_sum, f"vector {vector_id}"
        )
        digest = hashlib.sha256(text[start:end].encode("utf-8", "surrogatepass")).digest()
        fits = owner == model.id and key == digest and len(data) == size
        reading.require(fits, f"vector {vector_id} is not that of its window")
        own.append(WindowRow(start, end, key))
        if key not in vectors:
            vectors[key] = np.zeros(
                0, dtype=np.float32
            )  # its place, until all are unpacked at once
            keys.append(key)
            blobs.append(data)
    try:
        vectors.update(
            zip(keys, check_vectors(vectors_from(blobs, model), model.dimension), strict=True)
        )
    except InvalidInput as error:
        raise reading.refuse(str(error)) from None
    return found


def write_documents(
    writer: Writer,
    model: StoredModel,
    documents: Iterable[TransferredDocument],
    listener: Callable[[int], None] | None = None,
) -> Written:
    """Store documents, a batch in one transaction, under new ids.

    Args:
        writer: of the index they go to; `writer.finish()` is the caller's.
        model: of that index; the documents' windows and vectors are its.
        documents: `row.root_id` is an id of that index. One that is there under the same root and path
            is replaced, and keeps its id.
        listener: called after each batch with the number of documents in it.
    """
    added = replaced = 0
    batch: list[TransferredDocument] = []
    windows = 0

    def flush() -> None:
        nonlocal added, replaced, windows
        if not batch:
            return
        written = _write_batch(writer, model, batch)
        added += written.added
        replaced += written.replaced
        if listener is not None:
            listener(len(batch))
        batch.clear()
        windows = 0

    for document in documents:
        batch.append(document)
        windows += len(document.vectors)
        if len(batch) >= BATCH_DOCUMENTS or windows >= BATCH_WINDOWS:
            flush()
    flush()
    return Written(added, replaced)


def _write_batch(writer: Writer, model: StoredModel, batch: list[TransferredDocument]) -> Written:
    wanted: dict[bytes, NDArray[np.float32]] = {}
    for document in batch:
        wanted.update(document.vectors)
    replaced = 0
    with writer.transaction() as transaction:
        ids = writer.store.vector_ids_of_keys(model.id, wanted)
        missing = [key for key in wanted if key not in ids]
        if missing:
            stacked = np.stack([wanted[key] for key in missing])
            ids.update(transaction.put_vectors(model, missing, stacked))
        for document in batch:
            known = _stored_id(writer.store, document.row)
            transaction.put_document(document.row, model, ids, known)
            replaced += known is not None
    return Written(len(batch) - replaced, replaced)


def _stored_id(store: Store, row: DocumentRow) -> int | None:
    found: tuple[Any, ...] | None = store.connection.execute(
        "SELECT id FROM document WHERE ifnull(root_id, 0) = ? AND path = ?",
        (row.root_id or 0, row.path),
    ).fetchone()
    return None if found is None else int(found[0])


def display(path: bytes) -> str:
    """A stored path for people; bytes that are not UTF-8 are shown as \\xNN."""
    return path.decode("utf-8", "backslashreplace")
