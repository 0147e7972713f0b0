"""Ranking passages for one query in one commit: two legs, their union, fusion.

Fusion: `w * cosine(best window) + (1 - w) * bm25 / max bm25 of this query`, over the union of both
legs' best passages, the missing score of either leg computed. w falls with the share of tokens the
model does not know, in the query and in the passage: a vector of unknown tokens says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragembed.config import RetrievalConfig
from ragembed.index import lookup
from ragembed.index.snapshot import Snapshot
from ragembed.index.vectors import MAX_K as MAX_WINDOWS
from ragembed.tokenizer import Tokenizer
from ragembed.types import Mode

# Windows looked at per wanted passage at first; more follow where passages share windows.
_WINDOWS_PER_PASSAGE = 3


@dataclass(slots=True)
class Candidate:
    """A passage on its way to becoming a hit."""

    passage_id: int
    dense: float | None = None
    window: tuple[int, int] | None = None  # its best window, in the document's offsets
    lexical: float | None = None
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Query:
    """A query as the two legs read it; `vector` (d,) is None where there is no dense leg."""

    text: str
    terms: Sequence[str]
    vector: NDArray[np.float32] | None
    mode: Mode
    documents: tuple[int, ...] | None = None  # the only documents to search in


class Ranking:
    """Ranks the passages of one commit."""

    def __init__(
        self, snapshot: Snapshot, tokenizer: Callable[[], Tokenizer], config: RetrievalConfig
    ) -> None:
        """`tokenizer` is asked for where both legs are fused."""
        self._snapshot = snapshot
        self._tokenizer = tokenizer
        self._config = config

    def rank(self, query: Query, k: int) -> list[Candidate]:
        """Candidates for k hits or more, best first."""
        wanted = max(k, self._config.candidates)
        candidates: dict[int, Candidate] = {}
        if query.vector is not None:
            nearest = self._nearest_passages(query.vector, wanted, query.documents)
            candidates = {candidate.passage_id: candidate for candidate in nearest}
        if query.mode != "dense":
            matches = self._snapshot.best_matches(query.terms, wanted, query.documents)
            for passage_id, score in matches:
                candidates.setdefault(passage_id, Candidate(passage_id)).lexical = score
        if query.mode == "hybrid":
            if query.vector is not None:
                self._add_missing_dense(candidates, query.vector)
            self._add_missing_lexical(candidates, query.terms)
            self._fuse(candidates, query.text)
        else:
            for candidate in candidates.values():
                own = candidate.dense if query.mode == "dense" else candidate.lexical
                candidate.score = own or 0.0
        return sorted(candidates.values(), key=lambda c: (-c.score, c.passage_id))

    def _nearest_passages(
        self, vector: NDArray[np.float32], wanted: int, documents: Collection[int] | None
    ) -> list[Candidate]:
        """The passages with the nearest windows; a passage is as near as its best window."""
        snapshot = self._snapshot
        allowed, total, inside = None, snapshot.vector_count, None
        if documents is not None:
            allowed = snapshot.vectors_of(tuple(documents))
            total = len(allowed)
            inside = set(documents)
        count = wanted * _WINDOWS_PER_PASSAGE
        while True:
            nearest = dict(snapshot.nearest(vector, min(count, MAX_WINDOWS), allowed))
            windows = lookup.windows_of_vectors(snapshot.store, list(nearest))
            if inside is not None:  # a vector may be shared with documents that do not count
                of = lookup.documents_of(snapshot.store, {w.passage_id for w in windows})
                windows = [window for window in windows if of.get(window.passage_id) in inside]
            best: dict[int, Candidate] = {}
            for window in windows:
                _improve(
                    best.setdefault(window.passage_id, Candidate(window.passage_id)),
                    window,
                    nearest[window.vector_id],
                )
            if len(best) >= wanted or count >= min(total, MAX_WINDOWS):
                ranked = sorted(best.values(), key=lambda c: (-(c.dense or 0.0), c.passage_id))
                return ranked[:wanted]
            count *= 2

    def _add_missing_dense(
        self, candidates: Mapping[int, Candidate], vector: NDArray[np.float32]
    ) -> None:
        missing = [c.passage_id for c in candidates.values() if c.dense is None]
        model = self._snapshot.model
        if model is None or not missing:
            return
        windows, vectors = lookup.window_vectors(self._snapshot.store, model, missing)
        for window, cosine in zip(windows, vectors @ vector, strict=True):
            _improve(candidates[window.passage_id], window, float(cosine))

    def _add_missing_lexical(
        self, candidates: Mapping[int, Candidate], terms: Sequence[str]
    ) -> None:
        missing = [c.passage_id for c in candidates.values() if c.lexical is None]
        found = self._snapshot.match_scores(terms, missing)
        for passage_id in missing:
            candidates[passage_id].lexical = found.get(passage_id, 0.0)

    def _fuse(self, candidates: Mapping[int, Candidate], text: str) -> None:
        top = max((c.lexical or 0.0 for c in candidates.values()), default=0.0) or 1.0
        weight = self._config.dense_weight * (1.0 - unknown_share(text, self._tokenizer()))
        model = self._snapshot.model
        unknown: Mapping[int, float] = {}
        if model is not None:
            unknown = lookup.unknown_shares(self._snapshot.store, model.id, list(candidates))
        for candidate in candidates.values():
            own = weight * (1.0 - unknown.get(candidate.passage_id, 0.0))
            dense = candidate.dense or 0.0
            candidate.score = own * dense + (1.0 - own) * (candidate.lexical or 0.0) / top


def _improve(candidate: Candidate, window: lookup.FoundWindow, cosine: float) -> None:
    if candidate.dense is None or cosine > candidate.dense:
        candidate.dense, candidate.window = cosine, (window.start, window.end)


def unknown_share(text: str, tokenizer: Tokenizer) -> float:
    """The share of a text's tokens that a tokenizer does not know."""
    tokens = tokenizer.encode([text])[0]
    return float(tokens.unknown.mean()) if len(tokens) else 0.0
