"""From the database to what derives from it: FAISS vectors and tantivy's files, current or built anew."""

from __future__ import annotations

import logging

import numpy as np

from ragembed.errors import StorageError
from ragembed.index import checkpoint
from ragembed.index.analysis import terms
from ragembed.index.lexical import LexicalFailure, LexicalIndex, PassageTerms
from ragembed.index.rows import StoredModel
from ragembed.index.store import PassageText, Store
from ragembed.index.vectors import VectorIndex

logger = logging.getLogger(__name__)

_REBUILD_BATCH = 20_000  # passages


def passage_terms(passage: PassageText) -> PassageTerms:
    """The terms of a passage; its title field holds the document's title and the heading path."""
    above = " \n ".join(dict.fromkeys([passage.title, *passage.heading]))
    language = passage.language
    return PassageTerms(
        passage.id, passage.document_id, terms(passage.text, language), terms(above, language)
    )


def current_vectors(store: Store, model: StoredModel) -> VectorIndex:
    """The newest good checkpoint brought up to the store's snapshot.

    A checkpoint that is missing or damaged is passed over; without any, all comes from the database.
    """
    for known in store.checkpoints(model.id):
        index = checkpoint.load(store.directory, known, model)
        if index is None:
            logger.warning(
                "%s is missing or damaged and is not used; `ragembed repair` builds it again",
                known.file,
            )
            continue
        if known.generation < store.floor:
            continue
        return follow(store, model, index, known.generation, known.max_vector_id)
    return follow(store, model, VectorIndex(model.dimension, model.precision), store.floor, 0)


def follow(
    store: Store, model: StoredModel, index: VectorIndex, generation: int, last: int
) -> VectorIndex:
    """A vector index of some generation, with vectors up to the id `last`, brought up to the store's."""
    dead = np.array(store.deleted("vector", generation), dtype=np.int64)
    dead = dead[dead <= last]  # what came and went since was never taken in
    for ids, vectors in store.vectors(model, last):
        index = index.with_changes(ids, vectors)
    return index.without(dead) if len(dead) else index


def current_lexical(store: Store) -> LexicalIndex:
    """The lexical files, brought up to the store's generation or built anew; needs the lock."""
    try:
        lexical = LexicalIndex.open(store.directory, store.lexical_seal())
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
        have = lexical.snapshot
        if have.generation > generation:
            warn_of_lost_commits(have.generation, generation)
            return False
        if have.generation < floor:
            return False
        if have.generation < generation:
            removed = store.deleted("passage", have.generation)
            added = [passage_terms(passage) for passage in store.passage_texts(have.last_passage)]
            lexical.apply(generation, store.last_id("passage"), added, removed)
        return lexical.snapshot.passages == store.counts()[1]


def warn_of_lost_commits(known: int, stored: int) -> None:
    """Say that derived files have seen more than the database holds."""
    logger.warning(
        "the lexical files know of commit %d and the database only of %d: commits were lost, by damage "
        "to its log or because an older database was put in its place",
        known,
        stored,
    )


def rebuild_on_disk(store: Store) -> LexicalIndex:
    """Lexical files built anew; needs the lock.

    Raises:
        StorageError: they cannot be written. The database is as it was, and whoever opens the index
            next tries again.
    """
    try:
        # Until they are there, nothing is known of the new files.
        store.connection.execute("DELETE FROM setting WHERE key = 'lexical'")
        return rebuild_lexical(store, LexicalIndex.create(store.directory))
    except (LexicalFailure, OSError) as error:
        raise StorageError(
            f"{store.directory}: the lexical files cannot be written ({error}); see to space and "
            "permissions, nothing that was acknowledged is lost"
        ) from error


def rebuild_lexical(store: Store, lexical: LexicalIndex) -> LexicalIndex:
    """Fill an empty lexical index from the database."""
    with store.snapshot():
        generation, last = store.generation, store.last_id("passage")
        batch: list[PassageTerms] = []
        for passage in store.passage_texts():
            batch.append(passage_terms(passage))
            if len(batch) >= _REBUILD_BATCH:
                lexical.apply(0, 0, batch, ())
                batch = []
        lexical.apply(generation, last, batch, ())
    return lexical
