"""Searching: database, FAISS and tantivy of one and the same commit, without blocking the writer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import IndexLocked, StorageError
from ragembed.index.commit import Writer
from ragembed.index.derive import current_vectors, rebuild_lexical
from ragembed.index.lexical import LexicalFailure, LexicalIndex
from ragembed.index.rows import StoredModel
from ragembed.index.store import Store
from ragembed.index.vectors import VectorIndex

logger = logging.getLogger(__name__)

# How long a reader waits for a live writer to bring tantivy up to a commit.
PATIENCE = 30.0
_PAUSE = 0.02


class Searcher:
    """Reads an index. It notices the commits of other processes; no restart is ever needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store.open(directory)
        self._vectors: VectorIndex | None = None
        self._vectors_at: tuple[int, int, int] = (-1, -1, -1)  # model, generation, last vector
        self._lexical: LexicalIndex | None = None
        self._in_memory = False

    def close(self) -> None:
        """Release the files."""
        self.store.close()

    @contextmanager
    def snapshot(self) -> Iterator[Searcher]:
        """All searches and reads in the block see one commit, in all three stores."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with self.store.snapshot():
                if self._lexical_is_current():
                    self._refresh_vectors()
                    yield self
                    return
            self._wait_for_lexical(deadline)

    # -- dense ---------------------------------------------------------------------------------

    def nearest(self, query: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """The k nearest vectors of a unit query (d,): (vector id, cosine), best first."""
        if self._vectors is None or not self._vectors.segments:
            return []
        ids, scores = self._vectors.search(query, k)
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    @property
    def vector_count(self) -> int:
        """Vectors that a search may return."""
        return 0 if self._vectors is None else self._vectors.size - self._vectors.dead_count

    def _refresh_vectors(self) -> None:
        model = self.store.model()
        if model is None:
            self._vectors, self._vectors_at = None, (-1, -1, -1)
            return
        generation = self.store.generation
        known_model, known_generation, last = self._vectors_at
        if (known_model, known_generation) == (model.id, generation):
            return
        if self._vectors is None or known_model != model.id or known_generation < self.store.floor:
            self._vectors, _ = current_vectors(self.store, model)
            last = int(self._vectors.ids().max(initial=0))
        else:
            last = self._add_tail(model, known_generation, last)
        self._vectors_at = (model.id, generation, last)

    def _add_tail(self, model: StoredModel, generation: int, last: int) -> int:
        """Take in what has been committed since; the old value stays whole for whoever reads it."""
        vectors = self._vectors
        if vectors is None:
            return last
        dead = np.array(self.store.deleted("vector", generation), dtype=np.int64)
        dead = dead[dead <= last]  # what came and went since then was never taken in
        for ids, array in self.store.vectors(model.id, model.dimension, last):
            vectors = vectors.with_changes(ids, array, np.zeros(0, dtype=np.int64))
            last = int(ids[-1])
        empty = np.zeros((0, model.dimension), dtype=np.float32)
        self._vectors = vectors.with_changes(np.zeros(0, dtype=np.int64), empty, dead)
        return last

    # -- lexical -------------------------------------------------------------------------------

    def best_matches(self, terms: Sequence[str], k: int) -> list[tuple[int, float]]:
        """The k best passages for any of the terms: (passage id, BM25), best first."""
        return self._lexical.search(terms, k) if self._lexical and terms else []

    def match_scores(self, terms: Sequence[str], passage_ids: Sequence[int]) -> dict[int, float]:
        """BM25 of given passages; those without any of the terms are left out."""
        return self._lexical.score(terms, passage_ids) if self._lexical and terms else {}

    def document_frequency(self, term: str) -> int:
        """Passages that hold a term."""
        return self._lexical.document_frequency(term) if self._lexical else 0

    def _lexical_is_current(self) -> bool:
        generation = self.store.generation
        if self._in_memory and self._lexical and self._lexical.generation != generation:
            self._lexical, self._in_memory = None, False  # the files may be of use again
        try:
            if self._lexical is None:
                self._lexical = LexicalIndex.open(self.directory)
            elif self._lexical.generation != generation:
                self._lexical.reload()
        except LexicalFailure as error:
            logger.info("lexical files: %s", error)
            self._lexical = None
            return False
        return self._lexical.generation == generation

    def _wait_for_lexical(self, deadline: float) -> None:
        """tantivy is behind the database: its writer is about to commit, or died before it could."""
        if self._lexical is not None and not self._in_memory:
            time.sleep(_PAUSE)
            if self._lexical.generation == self.store.generation:
                return  # one of the two has moved on meanwhile
        try:
            with Writer(self.directory, patience=0.0):
                return  # nobody was writing: opening as a writer has mended it
        except IndexLocked:
            if time.monotonic() < deadline:
                time.sleep(_PAUSE)
                return
            logger.info("the writer is slow; using lexical files in memory")
        except StorageError as error:
            logger.info("the index cannot be written (%s); using lexical files in memory", error)
        self._lexical = rebuild_lexical(self.store, LexicalIndex.in_memory())
        self._in_memory = True
