"""What a search fetches from the database by id; a row that is not what was written is never served."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.index.checksums import reading_crc, row_crc, vector_crc, window_crc
from ragembed.index.rows import StoredModel, StoredPassage, metadata_of
from ragembed.index.store import DOCUMENT_SAID, Store, heading_of, parts, vectors_from

logger = logging.getLogger(__name__)

_PASSAGE = (
    "SELECT p.id, p.document_id, p.position, p.start, p.end, p.first_line, p.last_line, p.page, "
    f"p.heading, p.text, p.crc, {', '.join('d.' + name for name in DOCUMENT_SAID.split(', '))}, d.crc "
    "FROM passage p JOIN document d ON d.id = p.document_id"
)
_SEE = "`ragembed verify` says more"


@dataclass(frozen=True, slots=True)
class FoundWindow:
    """A window: [start, end) of its document's text, in a passage, with a vector."""

    passage_id: int
    start: int
    end: int
    vector_id: int


def passages(store: Store, passage_ids: Sequence[int]) -> dict[int, StoredPassage]:
    """Passages by id; damaged and missing ones are left out and logged."""
    found: dict[int, StoredPassage] = {}
    for part in parts(passage_ids):
        marks = ",".join("?" * len(part))
        for row in store.connection.execute(f"{_PASSAGE} WHERE p.id IN ({marks})", part):
            if row_crc(*row[:10]) == row[10] and row_crc(*row[11:25]) == row[25]:
                found[row[0]] = _passage(row)
    if lost := len(set(passage_ids)) - len(found):
        logger.warning("%d passages are damaged and were left out; %s", lost, _SEE)
    return found


def windows_of_vectors(store: Store, vector_ids: Sequence[int]) -> list[FoundWindow]:
    """Every window that has one of the vectors, by passage and position."""
    found: list[FoundWindow] = []
    lost = 0
    for part in parts(vector_ids):
        marks = ",".join("?" * len(part))
        for row in store.connection.execute(
            "SELECT passage_id, model_id, position, start, end, vector_id, crc FROM window "
            f"WHERE vector_id IN ({marks}) ORDER BY passage_id, position",
            part,
        ):
            if window_crc(*row[:-1]) != row[-1]:
                lost += 1
                continue
            found.append(FoundWindow(row[0], row[3], row[4], row[5]))
    # A vector without a window is either on the list of strays, or its window's row is damaged.
    bare = sorted({id for id in vector_ids} - {window.vector_id for window in found})
    for part in parts(bare):
        marks = ",".join("?" * len(part))
        (strays,) = store.connection.execute(
            f"SELECT count(*) FROM stray WHERE vector_id IN ({marks})", part
        ).fetchone()
        lost = max(lost, len(part) - strays)
    if lost:
        logger.warning("%d windows are damaged and were left out; %s", lost, _SEE)
    return found


def window_vectors(
    store: Store, model: StoredModel, passage_ids: Sequence[int]
) -> tuple[list[FoundWindow], NDArray[np.float32]]:
    """All windows of some passages, in order, and their vectors (n, d)."""
    windows: list[FoundWindow] = []
    blobs: list[bytes] = []
    lost = 0
    for part in parts(passage_ids):
        marks = ",".join("?" * len(part))
        for row in store.connection.execute(
            "SELECT w.passage_id, w.model_id, w.position, w.start, w.end, w.vector_id, w.crc, v.id, "
            "v.model_id, v.key, v.data, v.crc FROM window w JOIN vector v ON v.id = w.vector_id "
            f"WHERE w.model_id = ? AND w.passage_id IN ({marks}) ORDER BY w.passage_id, w.position",
            (model.id, *part),
        ):
            if window_crc(*row[:6]) != row[6] or vector_crc(*row[7:11]) != row[11]:
                lost += 1
                continue
            windows.append(FoundWindow(row[0], row[3], row[4], row[5]))
            blobs.append(row[10])
    lost = max(lost, len(set(passage_ids)) - len({window.passage_id for window in windows}))
    if lost:
        logger.warning("%d windows are damaged and were left out; %s", lost, _SEE)
    return windows, vectors_from(blobs, model)


def vectors_by_id(
    store: Store, model: StoredModel, vector_ids: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Stored vectors: ids (n,) and values (n, d); damaged and missing ones are left out and logged."""
    ids: list[int] = []
    blobs: list[bytes] = []
    for part in parts(vector_ids):
        marks = ",".join("?" * len(part))
        for row in store.connection.execute(
            f"SELECT id, model_id, key, data, crc FROM vector WHERE id IN ({marks})", part
        ):
            if vector_crc(*row[:-1]) == row[-1] and row[1] == model.id:
                ids.append(row[0])
                blobs.append(row[3])
    if lost := len(set(vector_ids)) - len(ids):
        logger.warning("%d vectors are damaged and were left out; %s", lost, _SEE)
    return np.array(ids, dtype=np.int64), vectors_from(blobs, model)


def vector_ids_of_documents(
    store: Store, model_id: int, document_ids: Sequence[int]
) -> NDArray[np.int64]:
    """The vectors of some documents' windows, (n,), sorted; each once."""
    found: set[int] = set()
    for part in parts(document_ids):
        marks = ",".join("?" * len(part))
        rows = store.connection.execute(
            "SELECT w.vector_id FROM passage p JOIN window w ON w.passage_id = p.id "
            f"WHERE w.model_id = ? AND p.document_id IN ({marks})",
            (model_id, *part),
        )
        found.update(id for (id,) in rows)
    return np.array(sorted(found), dtype=np.int64)


def document_vectors(store: Store, model_id: int) -> NDArray[np.int64]:
    """Every pair of document id and vector id, (n, 2)."""
    rows = store.connection.execute(
        "SELECT p.document_id, w.vector_id FROM passage p JOIN window w ON w.passage_id = p.id "
        "WHERE w.model_id = ?",
        (model_id,),
    ).fetchall()
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def documents_of(store: Store, passage_ids: Collection[int]) -> dict[int, int]:
    """The document of each of some passages."""
    found: dict[int, int] = {}
    for part in parts(list(passage_ids)):
        marks = ",".join("?" * len(part))
        rows = store.connection.execute(
            f"SELECT id, document_id FROM passage WHERE id IN ({marks})", part
        )
        found.update(rows.fetchall())
    return found


def unknown_shares(store: Store, model_id: int, passage_ids: Sequence[int]) -> dict[int, float]:
    """Of some passages, the share of tokens the model does not know; those with none left out."""
    found: dict[int, float] = {}
    lost = 0
    for part in parts(passage_ids):
        marks = ",".join("?" * len(part))
        for row in store.connection.execute(
            "SELECT passage_id, model_id, tokens, unknown, crc FROM reading "
            f"WHERE model_id = ? AND passage_id IN ({marks})",
            (model_id, *part),
        ):
            if reading_crc(*row[:-1]) != row[-1]:
                lost += 1
            elif row[3]:
                found[row[0]] = row[3] / row[2]
    if lost:
        logger.warning("the token counts of %d passages are damaged and were left out", lost)
    return found


def _passage(row: tuple[Any, ...]) -> StoredPassage:
    id, document_id, _, start, end, first_line, last_line, page, heading, text = row[:10]
    root_id, path, sha256 = row[12:15]
    language, title, metadata = row[21:24]
    return StoredPassage(
        id,
        document_id,
        start,
        end,
        None if first_line is None else (first_line, last_line),
        page,
        heading_of(heading),
        text,
        root_id,
        path,
        title,
        language,
        metadata_of(metadata),
        sha256,
    )
