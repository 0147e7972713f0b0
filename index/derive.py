"""From the database to what derives from it: FAISS vectors and tantivy's files, current or built anew."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import StorageError
from ragembed.index.analysis import terms
from ragembed.index.lexical import LexicalFailure, LexicalIndex, PassageTerms
from ragembed.index.rows import StoredModel
from ragembed.index.store import Store
from ragembed.index.vectors import VectorIndex

logger = logging.getLogger(__name__)

_REBUILD_BATCH = 20_000  # passages


def passage_terms(
    passage_id: int, text: str, language: str, title: str, heading: Sequence[str]
) -> PassageTerms:
    """The terms of a passage; its title field holds the document's title and the heading path."""
    above = " \n ".join(dict.fromkeys([title, *heading]))
    return PassageTerms(passage_id, terms(text, language), terms(above, language))


def current_vectors(store: Store, model: StoredModel) -> tuple[VectorIndex, int]:
    """The newest good checkpoint brought up to the store's snapshot, and how many vectors it missed.

    A checkpoint that is missing or damaged is passed over; without any, all comes from the database.
    """
    for checkpoint in store.checkpoints(model.id):
        index = VectorIndex.load(store.directory, checkpoint, model.dimension)
        if index is None:
            logger.warning("%s is missing or damaged and is not used", checkpoint.file)
            continue
        if checkpoint.generation < store.floor:
            continue
        dead = np.array(store.deleted("vector", checkpoint.generation), dtype=np.int64)
        dead = dead[dead <= checkpoint.max_vector_id]  # what came and went since is in no file
        return _with_tail(store, model, index, checkpoint.max_vector_id, dead)
    return _with_tail(store, model, VectorIndex(model.dimension), 0, np.zeros(0, dtype=np.int64))


def _with_tail(
    store: Store, model: StoredModel, index: VectorIndex, after: int, dead: NDArray[np.int64]
) -> tuple[VectorIndex, int]:
    parts = list(store.vectors(model.id, model.dimension, after))
    if not parts:
        return index.with_changes(
            np.zeros(0, np.int64), np.zeros((0, model.dimension), np.float32), dead
        ), len(dead)
    ids = np.concatenate([ids for ids, _ in parts])
    vectors = np.concatenate([vectors for _, vectors in parts])
    return index.with_changes(ids, vectors, dead), len(dead) + len(ids)


def current_lexical(store: Store) -> LexicalIndex:
    """The lexical files, brought up to the store's generation or built anew; needs the lock."""
    try:
        lexical = LexicalIndex.open(store.directory)
        if catch_up(store, lexical):
            return lexical
        reason = "they do not fit the database"
    except LexicalFailure as error:
        reason = str(error)
    if store.counts()[0]:
        logger.warning("building the lexical files again: %s", reason)
    return rebuild_on_disk(store)


def catch_up(store: Store, lexical: LexicalIndex) -> bool:
    """Replay the commits that tantivy missed; False when that cannot be done."""
    with store.snapshot():
        generation, floor = store.generation, store.floor
        if lexical.generation > generation or lexical.generation < floor:
            return False
        if lexical.generation < generation:
            removed = store.deleted("passage", lexical.generation)
            added = [passage_terms(*row) for row in store.passage_texts(lexical.last_passage)]
            lexical.apply(generation, store.last_passage_id(), added, removed)
        return lexical.passages == store.counts()[1]


def rebuild_on_disk(store: Store) -> LexicalIndex:
    """Lexical files built anew; needs the lock.

    Raises:
        StorageError: they cannot be written. The database is as it was, and whoever opens the index
            next tries again.
    """
    try:
        return rebuild_lexical(store, LexicalIndex.create(store.directory))
    except (LexicalFailure, OSError) as error:
        raise StorageError(
            f"{store.directory}: the lexical files cannot be written ({error}); see to space and "
            "permissions, nothing that was acknowledged is lost"
        ) from error


def rebuild_lexical(store: Store, lexical: LexicalIndex) -> LexicalIndex:
    """Fill an empty lexical index from the database."""
    with store.snapshot():
        generation, last = store.generation, store.last_passage_id()
        batch: list[PassageTerms] = []
        for row in store.passage_texts():
            batch.append(passage_terms(*row))
            if len(batch) >= _REBUILD_BATCH:
                lexical.apply(0, 0, batch, ())
                batch = []
        lexical.apply(generation, last, batch, ())
    return lexical
