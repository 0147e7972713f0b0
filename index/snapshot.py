"""Searching: database, FAISS and tantivy of one and the same commit, without blocking the writer.

A `Searcher` may be shared by threads. Each snapshot has a connection of its own; FAISS and tantivy are
held once, as immutable values of one commit (`_View`), and replaced when a newer commit is seen.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import IndexDamaged, IndexFailure, IndexLocked, IndexVersionError, StorageError
from ragembed.index import ann, lookup, schema
from ragembed.index.commit import CHECKPOINT_SHARE, Writer
from ragembed.index.derive import (
    current_vectors,
    follow,
    rebuild_lexical,
    warn_of_lost_commits,
)
from ragembed.index.disk import DATABASE
from ragembed.index.lexical import LexicalFailure, LexicalIndex, LexicalSnapshot, peek
from ragembed.index.rows import StoredModel
from ragembed.index.scope import DocumentVectors
from ragembed.index.store import Store
from ragembed.index.vectors import MAX_K, VectorIndex

logger = logging.getLogger(__name__)

# How long a reader waits for a live writer to bring tantivy up to a commit.
PATIENCE = 30.0
_PAUSE = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """What derives from one commit."""

    history: str
    generation: int
    model: StoredModel | None
    vectors: VectorIndex
    last_vector: int
    lexical: LexicalSnapshot
    documents: DocumentVectors


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One commit, in all three stores; valid inside the block of `Searcher.snapshot`."""

    store: Store
    view: _View

    @property
    def model(self) -> StoredModel | None:
        """The model whose vectors answer; None in an empty index."""
        return self.view.model

    @property
    def vector_count(self) -> int:
        """Vectors that a search may return."""
        return self.view.vectors.size - self.view.vectors.dead_count

    def vectors_of(self, documents: Sequence[int]) -> NDArray[np.int64]:
        """The vectors of some documents, (n,): what `nearest` may be confined to."""
        return self.view.documents.of(self.store, documents)

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None = None
    ) -> list[tuple[int, float]]:
        """The k nearest vectors of a unit query (d,): (vector id, cosine), best first.

        `allowed` are the only vectors that may be found; None allows all. Cosines are those of the
        stored vectors: what FAISS holds less exactly is only a choice of candidates.
        """
        vectors, model = self.view.vectors, self.model
        if model is None:
            return []
        if vectors.exact:
            ids, scores = vectors.search(query, k, allowed)
        else:
            wanted = min(MAX_K, ann.RESCORE * k)
            candidates, _ = vectors.search(query, wanted, allowed)
            ids, stored = lookup.vectors_by_id(self.store, model, candidates.tolist())
            scores = stored @ query
            best = np.lexsort((ids, -scores))[:k]
            ids, scores = ids[best], scores[best]
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    def best_matches(
        self, terms: Sequence[str], k: int, documents: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        """The k best passages for any of the terms: (passage id, BM25), best first.

        `documents` are the only documents whose passages may be found; None allows all.
        """
        with self._readable():
            return self.view.lexical.search(terms, k, documents) if terms else []

    def match_scores(self, terms: Sequence[str], passage_ids: Sequence[int]) -> dict[int, float]:
        """BM25 of given passages; those without any of the terms are left out."""
        with self._readable():
            return self.view.lexical.score(terms, passage_ids) if terms else {}

    def document_frequency(self, term: str) -> int:
        """Passages that hold a term."""
        return self.view.lexical.document_frequency(term)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """tantivy's files may have right checksums and yet not be where they belong."""
        try:
            yield
        except LexicalFailure as error:
            raise IndexDamaged(
                f"the lexical files in {self.store.directory} cannot be read ({error}): `ragembed "
                "repair` builds them again"
            ) from error


class Searcher:
    """Reads an index. It notices the commits of other processes; no restart is ever needed."""

    def __init__(self, directory: Path) -> None:
        """Raises IndexNotFound, NotAnIndex, IndexVersionError, IndexDamaged, StorageError."""
        self.directory = directory
        self._process = os.getpid()
        self._idle: list[Store] = []
        self._pool = threading.Lock()
        self._refreshing = threading.Lock()
        self._view: _View | None = None
        self._lexical: LexicalIndex | None = None
        self._in_memory = False
        self._closed = False
        if schema.stored_format(directory) != schema.FORMAT:
            self._migrate()
        self._identity = _identity(directory)
        known = peek(directory)  # before the database is looked at, which is always ahead
        with self.reading() as store:
            if known > store.generation:
                warn_of_lost_commits(known, store.generation)

    def close(self) -> None:
        """Release the files; snapshots that are still in use release theirs when they end."""
        with self._pool:
            self._closed = True
            idle, self._idle = self._idle, []
        for store in idle:
            store.close()

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """A connection whose reads in the block are of one commit."""
        store = self._borrow()
        try:
            with store.snapshot():
                yield store
        finally:
            self._give_back(store)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """All searches and reads in the block see one commit, in all three stores."""
        deadline = time.monotonic() + PATIENCE
        store = self._borrow()
        try:
            while True:
                with store.snapshot():
                    view = self._view_of(store)
                    if view is not None:
                        yield Snapshot(store, view)
                        return
                self._wait_for_lexical(store, deadline)
        finally:
            self._give_back(store)

    def _borrow(self) -> Store:
        if os.getpid() != self._process:
            raise IndexFailure(
                f"the index in {self.directory} was opened before this process was forked: open it in "
                "the new process, and start processes by spawn (FAISS does not survive a fork)"
            )
        with self._pool:
            if self._closed:
                raise IndexFailure(f"the index in {self.directory} has been closed: open it again")
            self._notice_replacement()
            identity = self._identity
            store = self._idle.pop() if self._idle else Store.open(self.directory)
        store.identity = identity
        return store

    def _give_back(self, store: Store) -> None:
        with self._pool:
            if not self._closed and store.identity == self._identity:
                self._idle.append(store)
                return
        store.close()

    def _notice_replacement(self) -> None:
        """Let go of everything that is of another index, if one was put in this one's place."""
        now = _identity(self.directory)
        if now == self._identity:
            return
        for store in self._idle:
            store.close()
        self._idle, self._identity = [], now
        with self._refreshing:
            self._view = self._lexical = None
            self._in_memory = False

    def _migrate(self) -> None:
        """Bring an older format up to date, which only a writer can."""
        try:
            with Writer(self.directory):
                pass
        except StorageError as error:
            raise IndexVersionError(
                f"the index in {self.directory} has an older format and cannot be written to bring it up "
                f"to date ({error}): copy it to where it can be"
            ) from error

    # -- views ---------------------------------------------------------------------------------

    def _view_of(self, store: Store) -> _View | None:
        """The view of the commit that a connection sees; None if that cannot be had (any more)."""
        generation, history = store.generation, store.history
        view = self._view
        if view is not None and (view.history, view.generation) == (history, generation):
            return view
        with self._refreshing:
            view = self._view
            if view is not None and view.history == history:
                if view.generation == generation:
                    return view
                if view.generation > generation:
                    return None  # another thread has moved on; look at the newer commit, too
            lexical = self._lexical_of(store, generation)
            if lexical is None:
                return None
            self._view = self._next_view(store, history, generation, lexical, view)
            return self._view

    def _next_view(
        self,
        store: Store,
        history: str,
        generation: int,
        lexical: LexicalSnapshot,
        before: _View | None,
    ) -> _View:
        model = store.model()
        if model is None:
            nothing = VectorIndex(0)
            return _View(history, generation, None, nothing, 0, lexical, DocumentVectors(0))
        vectors = None
        if before is not None and (before.history, before.model) == (history, model):
            if before.generation >= store.floor:
                vectors = follow(
                    store, model, before.vectors, before.generation, before.last_vector
                )
            if vectors is not None and self._outgrown(store, model, vectors):
                vectors = None
        if vectors is None:
            vectors = current_vectors(store, model)
        last, documents = store.last_id("vector"), DocumentVectors(model.id)
        return _View(history, generation, model, vectors, last, lexical, documents)

    def _outgrown(self, store: Store, model: StoredModel, vectors: VectorIndex) -> bool:
        """Whether a newer checkpoint has taken in a tail that has become long."""
        if vectors.tail <= 2 * CHECKPOINT_SHARE * vectors.size:
            return False
        known = store.checkpoints(model.id)
        first = vectors.segments[0].last_id if vectors.segments else 0
        return bool(known) and known[0].max_vector_id > first

    # -- lexical -------------------------------------------------------------------------------

    def _lexical_of(self, store: Store, generation: int) -> LexicalSnapshot | None:
        if self._in_memory and self._lexical and self._lexical.snapshot.generation != generation:
            self._lexical, self._in_memory = None, False  # the files may be of use again
        try:
            if self._lexical is None:
                self._lexical = LexicalIndex.open(self.directory, store.lexical_seal())
            elif self._lexical.snapshot.generation != generation:
                self._lexical.reload()
        except LexicalFailure as error:
            logger.info("lexical files: %s", error)
            self._lexical = None
            return None
        snapshot = self._lexical.snapshot
        return snapshot if snapshot.generation == generation else None

    def _wait_for_lexical(self, store: Store, deadline: float) -> None:
        """tantivy is behind the database: its writer is about to commit, or died before it could."""
        if self._lexical is not None and not self._in_memory:
            time.sleep(_PAUSE)
            with self._refreshing:
                if self._lexical_of(store, store.generation) is not None:
                    return  # one of the two has moved on meanwhile
        try:
            with Writer(self.directory, patience=0.0):
                pass  # nobody was writing: opening as a writer has mended it
            if time.monotonic() < deadline:
                return
        except IndexLocked:
            if time.monotonic() < deadline:
                time.sleep(_PAUSE)
                return
            logger.info("the writer is slow; using lexical files in memory")
        except StorageError as error:
            logger.info("the index cannot be written (%s); using lexical files in memory", error)
        with self._refreshing:
            self._lexical = rebuild_lexical(store, LexicalIndex.in_memory())
            self._in_memory = True


def _identity(directory: Path) -> tuple[int, int] | None:
    """Which file the database is: an index may be moved aside and another put in its place."""
    try:
        status = os.stat(directory / DATABASE)
    except OSError:
        return None
    return status.st_dev, status.st_ino
