"""Checking an index against itself: every row, every span, every derived file."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ragembed.errors import IndexDamaged, IndexFailure
from ragembed.index import checkpoint, lookup
from ragembed.index.checksums import reading_crc, row_crc, vector_crc, window_crc
from ragembed.index.derive import passage_terms
from ragembed.index.disk import DATABASE
from ragembed.index.lexical import (
    DIRECTORY,
    LexicalFailure,
    LexicalIndex,
    LexicalSnapshot,
    NoLexicalFiles,
    damaged_files,
)
from ragembed.index.rows import Checkpoint, StoredDocument, StoredModel
from ragembed.index.store import DOCUMENT_SAID, Store, stored_dtype
from ragembed.index.vectors import VectorIndex
from ragembed.types import Problem

Depth = Literal["quick", "default", "deep"]

_REBUILD = "`ragembed repair` builds it again; until then the database answers"
_AGAIN = "index the document's file again with `ragembed remove` and `ragembed index`"
_SALVAGE = "restore a backup, or save what can be read with `ragembed repair --into NEW`"
_SELF_SEARCHES = 1_000  # vectors that `deep` looks for, spread over all
_SELF_TOLERANCE = 2e-3  # of a cosine of 1: float16 rounds
_SELF_MATCHES = 200  # passages that are looked for by their own words, spread over all
_SELF_WORDS = 32
_LOSSY_DEPTH = 100  # how deep a vector may lie in its own result where FAISS quantises
_LOSSY_MISSES = 0.05  # the share that graphs and quantised indexes may miss


def verify(directory: Path, depth: Depth = "default") -> list[Problem]:
    """Everything that is wrong with an index; an empty list when nothing is.

    Args:
        directory: of the index.
        depth: "quick" compares the sizes and hashes of derived files and the counts; "default" checks
            SQLite's own structure, every checksum, that every passage is its document's text at its
            span, that every window lies in its passage and has a vector, and that FAISS and tantivy
            hold exactly what the database holds; "deep" also that FAISS holds every vector as stored
            and finds it.

    Raises:
        IndexNotFound, NotAnIndex, IndexVersionError: there is nothing that could be checked.
    """
    try:
        store = Store.open(directory)
    except IndexDamaged as error:
        return [Problem("database", str(directory / DATABASE), str(error))]
    try:
        with store.snapshot():
            if depth == "quick":
                return [
                    *_settings(store),
                    *_counts(store),
                    *_files(store),
                    *_lexical(store, sample=False),
                ]
            problems = list(_database(store))
            if not problems:
                problems = [*_settings(store), *_documents(store), *_vectors(store)]
            if not problems:
                problems = list(_checkpoints(store, deep=depth == "deep"))
            problems += _lexical(store, sample=not problems)
        return problems
    except (IndexFailure, sqlite3.DatabaseError) as error:
        return [Problem("database", str(directory / DATABASE), str(error))]
    finally:
        store.close()


def _database(store: Store) -> Iterator[Problem]:
    for (message,) in store.connection.execute("PRAGMA integrity_check(20)"):
        if message != "ok":
            yield Problem("database", str(message), _SALVAGE)
    for table, rowid, parent, _ in store.connection.execute("PRAGMA foreign_key_check"):
        yield Problem("reference", f"{table} row {rowid} names a missing {parent}", _SALVAGE)


def _settings(store: Store) -> Iterator[Problem]:
    """The small tables; `model`, `roots` and `setting` raise where a checksum does not fit."""
    for key, value, crc in store.connection.execute("SELECT key, value, crc FROM setting"):
        if row_crc(key, value) != crc:
            yield Problem("checksum", f"setting {key}", _SALVAGE)
    for table, columns in (
        ("root", "id, path, file, scan"),
        ("model", "id, name, fingerprint, dimension, precision"),
        (
            "checkpoint",
            "id, model_id, file, bytes, sha256, vectors, max_vector_id, generation, kind, trained, "
            "probes",
        ),
    ):
        for *said, crc in store.connection.execute(f"SELECT {columns}, crc FROM {table}"):
            if row_crc(*said) != crc:
                remedy = _REBUILD if table == "checkpoint" else _SALVAGE
                yield Problem("checksum", f"{table} {said[0]}", remedy)
    if store.generation < store.floor:
        yield Problem("database", "the deletion log begins after the last commit", _SALVAGE)
    store.model()


def _counts(store: Store) -> Iterator[Problem]:
    """Rows against the figures of their documents."""
    documents, passages, windows = store.counts()
    model = store.model()
    found = [
        ("passages", passages, "SELECT count(*) FROM passage", ()),
        ("sources", documents, "SELECT count(*) FROM source", ()),
    ]
    if model is not None:
        count = "SELECT count(*) FROM window WHERE model_id = ?"
        found.append(("windows", windows, count, (model.id,)))  # type: ignore[arg-type]
    for name, due, statement, values in found:
        (there,) = store.connection.execute(statement, values).fetchone()
        if there != due:
            yield Problem("count", f"there are {there} {name}, {due} are due", _SALVAGE)


def _files(store: Store) -> Iterator[Problem]:
    for model in store.models():
        for known in store.checkpoints(model.id):
            file = store.directory / known.file
            if checkpoint.read_hashed(file, known.size, known.sha256) is None:
                yield Problem("faiss", f"{known.file} is missing or damaged", _REBUILD)


def _documents(store: Store) -> Iterator[Problem]:
    model = store.model()
    for document in store.documents():
        name = document.path.decode("utf-8", "backslashreplace")
        try:
            text = store.source_text(document.id)
        except IndexDamaged as error:
            yield Problem("text", name, str(error))
            continue
        *own, crc = store.connection.execute(
            f"SELECT {DOCUMENT_SAID}, crc FROM document WHERE id = ?",
            (document.id,),
        ).fetchone()
        if row_crc(*own) != crc:
            yield Problem("checksum", f"document {document.id}, {name}", _AGAIN)
        yield from _passages(store, model, document, name, text)


def _passages(
    store: Store, model: StoredModel | None, document: StoredDocument, name: str, text: str
) -> Iterator[Problem]:
    passages = windows = tokens = unknown = 0
    rows = store.connection.execute(
        "SELECT id, document_id, position, start, end, first_line, last_line, page, heading, text, "
        "crc FROM passage WHERE document_id = ? ORDER BY position",
        (document.id,),
    ).fetchall()
    for row in rows:
        id, start, end, passage = row[0], row[3], row[4], row[9]
        passages += 1
        if row_crc(*row[:-1]) != row[-1]:
            yield Problem("checksum", f"passage {id} of {name}", _AGAIN)
        elif text[start:end] != passage:
            yield Problem("span", f"passage {id} of {name}", _AGAIN)
        spans = store.connection.execute(
            "SELECT w.passage_id, w.model_id, w.position, w.start, w.end, w.vector_id, w.crc, v.key, "
            "v.model_id FROM window w JOIN vector v ON v.id = w.vector_id WHERE w.passage_id = ?",
            (id,),
        ).fetchall()
        if not all(_window_is_right(span, start, end, text) for span in spans):
            yield Problem("window", f"passage {id} of {name}", _AGAIN)
        readings = store.connection.execute(
            "SELECT passage_id, model_id, tokens, unknown, crc FROM reading WHERE passage_id = ?",
            (id,),
        ).fetchall()
        by_model = {span[1] for span in spans}
        for reading in readings:
            if reading_crc(*reading[:-1]) != reading[-1] or reading[1] not in by_model:
                yield Problem("reading", f"passage {id} of {name}", _AGAIN)
        if model is not None:
            windows += sum(span[1] == model.id for span in spans)
            own = [reading for reading in readings if reading[1] == model.id]
            tokens += sum(reading[2] for reading in own)
            unknown += sum(reading[3] for reading in own)
            if not own or model.id not in by_model:
                yield Problem("window", f"passage {id} of {name} has none", _AGAIN)
    found = (passages, windows, tokens, unknown)
    due = (document.passages, document.windows, document.tokens, document.unknown)
    if found != due:
        yield Problem(
            "count",
            f"{name} has {passages} passages, {windows} windows, {tokens} tokens ({unknown} unknown); "
            f"{', '.join(map(str, due))} are due",
            _AGAIN,
        )


def _window_is_right(row: tuple[Any, ...], start: int, end: int, text: str) -> bool:
    _, model_id, _, first, last, _, crc, key, vector_model = row
    if window_crc(*row[:6]) != crc or model_id != vector_model:
        return False
    if not start <= first < last <= end:
        return False
    digest = hashlib.sha256(text[first:last].encode("utf-8", "surrogatepass")).digest()
    return bool(digest == key)


def _vectors(store: Store) -> Iterator[Problem]:
    """Every vector's checksum and length; those without a window have to be on the list of strays."""
    rows = store.connection.execute(
        "SELECT v.id, v.model_id, v.key, v.data, v.crc, m.dimension, m.precision, "
        "EXISTS (SELECT 1 FROM window w WHERE w.vector_id = v.id) "
        "OR EXISTS (SELECT 1 FROM stray s WHERE s.vector_id = v.id) "
        "FROM vector v JOIN model m ON m.id = v.model_id"
    )
    for *said, crc, dimension, precision, known in rows:
        if vector_crc(*said) != crc:
            yield Problem("checksum", f"vector {said[0]}", _AGAIN)
        elif len(said[3]) != dimension * np.dtype(stored_dtype(precision)).itemsize:
            yield Problem("vector", f"vector {said[0]} has {len(said[3])} bytes", _AGAIN)
        elif not known:
            yield Problem("vector", f"vector {said[0]} has no window", _AGAIN)


def _checkpoints(store: Store, *, deep: bool) -> Iterator[Problem]:
    for model in store.models():
        for number, known in enumerate(store.checkpoints(model.id)):
            index = checkpoint.load(store.directory, known, model)
            if index is None:
                yield Problem("faiss", f"{known.file} is missing or damaged", _REBUILD)
            elif known.generation >= store.floor:
                if not _holds_the_stored(store, model, known, index):
                    yield Problem("faiss", f"{known.file} does not fit the database", _REBUILD)
                elif deep and not number and (lost := _not_found(store, model, index)):
                    where = f"{known.file} does not find {lost:.1%} of its vectors"
                    yield Problem("faiss", where, _REBUILD)


def _holds_the_stored(
    store: Store, model: StoredModel, known: Checkpoint, index: VectorIndex
) -> bool:
    rows = store.connection.execute(
        "SELECT id FROM vector WHERE model_id = ? AND id <= ?", (model.id, known.max_vector_id)
    )
    stored = {id for (id,) in rows}
    held = set(index.ids().tolist())
    return held - set(store.deleted("vector", known.generation)) == stored


def _not_found(store: Store, model: StoredModel, index: VectorIndex) -> float:
    """The share of a sample of stored vectors that FAISS does not hold as they are, or does not find
    among the nearest to themselves; 0 where so few are missed as a lossy index may miss."""
    ids = np.sort(index.ids())[:: max(1, index.size // _SELF_SEARCHES)]
    gone = set(store.deleted("vector", 0))
    living = [id for id in ids.tolist() if id not in gone]
    missed = 0
    for id, stored in zip(*lookup.vectors_by_id(store, model, living), strict=True):
        unit = stored / np.linalg.norm(stored)
        if index.exact:
            alone, scores = index.search(unit, 1, np.array([id], dtype=np.int64))
            _, best = index.search(unit, 1)
            missed += not (
                alone.tolist() == [id]
                and abs(scores[0] - 1) < _SELF_TOLERANCE
                and best[0] >= scores[0] - _SELF_TOLERANCE
            )
        else:
            missed += id not in index.search(unit, _LOSSY_DEPTH)[0]
    share = missed / max(1, len(living))
    return share if index.exact or share > _LOSSY_MISSES else 0.0


def _lexical(store: Store, *, sample: bool) -> list[Problem]:
    try:
        lexical = LexicalIndex.open(store.directory, store.lexical_seal()).snapshot
    except NoLexicalFiles:
        return []  # whoever opens the index next builds them
    except LexicalFailure as error:
        path = store.directory / DIRECTORY
        if not os.access(path, os.W_OK) and not damaged_files(path):
            return []  # tantivy opens nothing on read-only media; the files themselves are sound
        return [Problem("lexical", f"{DIRECTORY}: {error}", _REBUILD)]
    if lexical.generation < store.generation:
        return []  # behind: whoever opens the index next catches up
    where = ""
    if lexical.generation > store.generation:
        where = f"{DIRECTORY} is of commit {lexical.generation}, the database of {store.generation}"
    elif lexical.passages != store.counts()[1]:
        where = f"{DIRECTORY} holds {lexical.passages} of {store.counts()[1]} passages"
    elif sample and (lost := _not_matched(store, lexical)):
        where = f"{DIRECTORY} does not find {lost} of a sample of passages"
    return [Problem("lexical", where, _REBUILD)] if where else []


def _not_matched(store: Store, lexical: LexicalSnapshot) -> int:
    """How many of a sample of passages tantivy does not find by their own words: its files carry
    checksums, but nothing says that each is the one it is called."""
    step = max(1, store.counts()[1] // _SELF_MATCHES)
    lost = 0
    for number, passage in enumerate(store.passage_texts()):
        if number % step:
            continue
        words = sorted(set(passage_terms(passage).body))[:_SELF_WORDS]
        try:
            lost += bool(words) and passage.id not in lexical.score(words, [passage.id])
        except LexicalFailure:
            lost += 1
    return lost
