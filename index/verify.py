"""Checking an index against itself: every row, every span, every derived file."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ragembed.errors import IndexDamaged, IndexFailure
from ragembed.index import schema
from ragembed.index.lexical import DIRECTORY, LexicalFailure, LexicalIndex, damaged_files
from ragembed.index.store import Store, document_crc, passage_crc
from ragembed.index.vectors import VectorIndex
from ragembed.types import Problem

_REBUILD = "the next `ragembed index` builds it again; until then the database answers"
_AGAIN = "index the document's file again with `ragembed remove` and `ragembed index`"


def verify(directory: Path) -> list[Problem]:
    """Everything that is wrong with an index; an empty list when nothing is.

    Checks SQLite's own structure, every checksum, that every passage is its document's text at its
    span, that every window lies in its passage and has a vector, and that FAISS and tantivy hold
    exactly what the database holds.

    Raises:
        IndexNotFound, NotAnIndex, IndexVersionError: there is nothing that could be checked.
    """
    try:
        store = Store.open(directory)
    except IndexDamaged as error:
        return [Problem("database", str(directory / schema.DATABASE), str(error))]
    try:
        with store.snapshot():
            problems = list(_database(store))
            if not problems:
                problems = [*_documents(store), *_vectors(store), *_checkpoints(store)]
            problems += _lexical(store)
        return problems
    except (IndexFailure, sqlite3.DatabaseError) as error:
        return [Problem("database", str(directory / schema.DATABASE), str(error))]
    finally:
        store.close()


def _database(store: Store) -> Iterator[Problem]:
    remedy = "restore a backup, or index the folders again into a new directory"
    for (message,) in store.connection.execute("PRAGMA integrity_check(20)"):
        if message != "ok":
            yield Problem("database", str(message), remedy)
    for table, rowid, parent, _ in store.connection.execute("PRAGMA foreign_key_check"):
        yield Problem("reference", f"{table} row {rowid} names a missing {parent}", remedy)


def _documents(store: Store) -> Iterator[Problem]:
    for document in store.documents():
        name = document.path.decode("utf-8", "backslashreplace")
        try:
            text = store.source_text(document.id)
        except IndexDamaged as error:
            yield Problem("text", name, str(error))
            continue
        own = store.connection.execute(
            "SELECT path, sha256, title, language, metadata, crc FROM document WHERE id = ?",
            (document.id,),
        ).fetchone()
        if document_crc(*own[:-1]) != own[-1]:
            yield Problem("checksum", f"document {document.id}, {name}", _AGAIN)
        passages = windows = 0
        rows = store.connection.execute(
            "SELECT id, start, end, text, crc, position, first_line, last_line, page, heading "
            "FROM passage WHERE document_id = ? ORDER BY position",
            (document.id,),
        ).fetchall()
        for id, start, end, passage, crc, position, *rest in rows:
            passages += 1
            if passage_crc(document.id, position, start, end, *rest, passage) != crc:
                yield Problem("checksum", f"passage {id} of {name}", _AGAIN)
            elif text[start:end] != passage:
                yield Problem("span", f"passage {id} of {name}", _AGAIN)
            spans = store.connection.execute(
                "SELECT w.start, w.end, v.key FROM window w JOIN vector v ON v.id = w.vector_id "
                "WHERE w.passage_id = ?",
                (id,),
            ).fetchall()
            windows += len(spans)
            if not spans or not all(
                start <= first < last <= end
                and hashlib.sha256(text[first:last].encode("utf-8", "surrogatepass")).digest()
                == key
                for first, last, key in spans
            ):
                yield Problem("window", f"passage {id} of {name}", _AGAIN)
        if (passages, windows) != (document.passages, document.windows):
            yield Problem(
                "count",
                f"{name} has {passages} passages and {windows} windows, "
                f"{document.passages} and {document.windows} were stored",
                _AGAIN,
            )


def _vectors(store: Store) -> Iterator[Problem]:
    rows = store.connection.execute(
        "SELECT v.id, v.data, v.crc, m.dimension FROM vector v JOIN model m ON m.id = v.model_id"
    )
    for id, data, crc, dimension in rows:
        if zlib.crc32(data) != crc:
            yield Problem("checksum", f"vector {id}", _AGAIN)
        elif len(data) != 2 * dimension:
            yield Problem("vector", f"vector {id} has {len(data)} bytes", _AGAIN)


def _checkpoints(store: Store) -> Iterator[Problem]:
    model = store.model()
    if model is None:
        return
    for number, checkpoint in enumerate(store.checkpoints(model.id)):
        index = VectorIndex.load(store.directory, checkpoint, model.dimension)
        if index is None:
            yield Problem("faiss", f"{checkpoint.file} is missing or damaged", _REBUILD)
            continue
        if number:
            continue
        rows = store.connection.execute(
            "SELECT id FROM vector WHERE model_id = ? AND id <= ?",
            (model.id, checkpoint.max_vector_id),
        )
        stored = {id for (id,) in rows}
        dead = set(store.deleted("vector", checkpoint.generation))
        held = set(index.ids().tolist())
        if not np.array_equal(sorted(held - dead), sorted(stored)):
            yield Problem("faiss", f"{checkpoint.file} does not fit the database", _REBUILD)


def _lexical(store: Store) -> list[Problem]:
    try:
        lexical = LexicalIndex.open(store.directory)
    except LexicalFailure as error:
        if store.counts()[0] == 0:
            return []
        path = store.directory / DIRECTORY
        if not os.access(path, os.W_OK) and not damaged_files(path):
            return []  # tantivy opens nothing on read-only media; the files themselves are sound
        return [Problem("lexical", f"{DIRECTORY}: {error}", _REBUILD)]
    if lexical.generation < store.generation:
        return []  # behind: whoever opens the index next catches up
    if lexical.generation > store.generation:
        where = f"{DIRECTORY} is of commit {lexical.generation}, the database of {store.generation}"
        return [Problem("lexical", where, _REBUILD)]
    if lexical.passages != store.counts()[1]:
        where = f"{DIRECTORY} holds {lexical.passages} of {store.counts()[1]} passages"
        return [Problem("lexical", where, _REBUILD)]
    return []
