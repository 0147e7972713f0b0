"""Retrieval: the dense and the lexical leg, fused per passage.

Fusion: `w * cosine(best window) + (1 - w) * bm25 / max bm25 of this query`, over the union of both
legs' best passages, the missing score of either leg computed. w falls with the share of tokens the
model does not know, in the query and in the passage: a vector of unknown tokens says nothing.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragembed.config import RetrievalConfig
from ragembed.encoder.embedder import Embedder
from ragembed.errors import InvalidInput
from ragembed.highlight import Highlighter
from ragembed.index.analysis import query_terms
from ragembed.index.rows import StoredPassage
from ragembed.index.snapshot import Searcher
from ragembed.tokenizer import Tokenizer
from ragembed.types import Hit, Mode, Place, SearchResult

MAX_K = 10_000
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


class Retriever:
    """Answers queries from one index with one embedder."""

    def __init__(
        self,
        searcher: Searcher,
        embedder: Callable[[], Embedder],
        tokenizer: Callable[[], Tokenizer],
        config: RetrievalConfig,
    ) -> None:
        """`embedder` and `tokenizer` are called when a mode first needs them: lexical search does not
        load a model."""
        self._searcher = searcher
        self._embedder = embedder
        self._tokenizer = tokenizer
        self._config = config

    def search(
        self, query: str, k: int, mode: Mode, *, nearest_sentence: bool = True
    ) -> SearchResult:
        """The k best passages, counted after equal texts have been folded into one hit.

        `nearest_sentence` lets the model choose the highlighted sentence where no word matches.

        Raises:
            InvalidInput: a blank query, a k below 1 or above 10,000, an unknown mode.
        """
        if not query.strip():
            raise InvalidInput("the query is blank; say what to look for")
        if not 1 <= k <= MAX_K:
            raise InvalidInput(f"k is {k}; it must lie between 1 and {MAX_K:,}")
        if mode not in ("hybrid", "dense", "lexical"):
            raise InvalidInput(f"mode {mode!r} is not one of hybrid, dense, lexical")
        query = query.encode("utf-8", "replace").decode()  # a lone surrogate has no tokens
        vector = None
        if mode != "lexical" and self._searcher.store.model() is not None:
            vector = self._embedder().encode_query([query])[0]
        with self._searcher.snapshot():
            terms = query_terms(query, self._searcher.store.languages())
            ranked = self._ranked(query, vector, terms, k, mode)
            return SearchResult(
                query=query,
                mode=mode,
                hits=self._hits(ranked, query, terms, k, nearest_sentence and mode != "lexical"),
            )

    def _ranked(
        self,
        query: str,
        vector: NDArray[np.float32] | None,
        terms: Sequence[str],
        k: int,
        mode: Mode,
    ) -> list[Candidate]:
        wanted = max(k, self._config.candidates)
        candidates: dict[int, Candidate] = {}
        if vector is not None:
            for candidate in self._nearest_passages(vector, wanted):
                candidates[candidate.passage_id] = candidate
        if mode != "dense":
            for passage_id, score in self._searcher.best_matches(terms, wanted):
                candidates.setdefault(passage_id, Candidate(passage_id)).lexical = score
        if mode == "hybrid":
            if vector is not None:
                self._add_missing_dense(candidates, vector)
            self._add_missing_lexical(candidates, terms)
            self._fuse(candidates, query)
        else:
            for candidate in candidates.values():
                candidate.score = (candidate.dense if mode == "dense" else candidate.lexical) or 0.0
        return sorted(candidates.values(), key=lambda c: (-c.score, c.passage_id))

    def _nearest_passages(self, vector: NDArray[np.float32], wanted: int) -> list[Candidate]:
        """The passages with the nearest windows; a passage is as near as its best window."""
        count = wanted * _WINDOWS_PER_PASSAGE
        while True:
            nearest = dict(self._searcher.nearest(vector, count))
            best: dict[int, Candidate] = {}
            windows = self._searcher.store.passages_of_vectors(list(nearest))
            for vector_id, passage_id, start, end in windows:
                cosine = nearest[vector_id]
                candidate = best.setdefault(passage_id, Candidate(passage_id))
                if candidate.dense is None or cosine > candidate.dense:
                    candidate.dense, candidate.window = cosine, (start, end)
            if len(best) >= wanted or count >= self._searcher.vector_count:
                ranked = sorted(best.values(), key=lambda c: (-(c.dense or 0.0), c.passage_id))
                return ranked[:wanted]
            count *= 2

    def _add_missing_dense(
        self, candidates: Mapping[int, Candidate], vector: NDArray[np.float32]
    ) -> None:
        missing = [c.passage_id for c in candidates.values() if c.dense is None]
        windows, vectors = self._searcher.store.window_vectors(missing, len(vector))
        for (passage_id, start, end), cosine in zip(windows, vectors @ vector, strict=True):
            candidate = candidates[passage_id]
            if candidate.dense is None or cosine > candidate.dense:
                candidate.dense, candidate.window = float(cosine), (start, end)

    def _add_missing_lexical(
        self, candidates: Mapping[int, Candidate], terms: Sequence[str]
    ) -> None:
        missing = [c.passage_id for c in candidates.values() if c.lexical is None]
        found = self._searcher.match_scores(terms, missing)
        for passage_id in missing:
            candidates[passage_id].lexical = found.get(passage_id, 0.0)

    def _fuse(self, candidates: Mapping[int, Candidate], query: str) -> None:
        top = max((c.lexical or 0.0 for c in candidates.values()), default=0.0) or 1.0
        weight = self._config.dense_weight * (1.0 - unknown_share(query, self._tokenizer()))
        unknown = self._searcher.store.unknown_shares(list(candidates))
        for candidate in candidates.values():
            own = weight * (1.0 - unknown.get(candidate.passage_id, 0.0))
            dense = candidate.dense or 0.0
            candidate.score = own * dense + (1.0 - own) * (candidate.lexical or 0.0) / top

    def _hits(
        self,
        ranked: Sequence[Candidate],
        query: str,
        terms: Sequence[str],
        k: int,
        nearest_sentence: bool,
    ) -> tuple[Hit, ...]:
        """The first k distinct texts as hits; each also names the other places it stands in."""
        groups: dict[str, list[tuple[Candidate, StoredPassage]]] = defaultdict(list)
        taken = 0
        while taken < len(ranked):  # a part at a time: k hits rarely need more passages than that
            part = ranked[taken : taken + 2 * k + 20]
            taken += len(part)
            passages = self._searcher.store.passages([c.passage_id for c in part])
            for candidate in part:
                passage = passages.get(candidate.passage_id)
                if passage is not None and (len(groups) < k or passage.text in groups):
                    groups[passage.text].append((candidate, passage))
            if len(groups) >= k:
                break
        roots = {root.id: os.fsdecode(root.path) for root in self._searcher.store.roots()}
        embedder = self._embedder if nearest_sentence else None
        highlighter = Highlighter(query, terms, self._searcher.document_frequency, embedder)
        firsts = [group[0] for group in groups.values()]
        marks = highlighter.mark([(passage, candidate.window) for candidate, passage in firsts])
        hits = []
        for rank, (group, mark) in enumerate(zip(groups.values(), marks, strict=True), start=1):
            candidate, passage = group[0]
            hits.append(
                Hit(
                    rank=rank,
                    score=candidate.score,
                    dense=candidate.dense,
                    lexical=candidate.lexical,
                    root=root_of(passage, roots),
                    path=display_path(passage.path),
                    start=passage.start,
                    end=passage.end,
                    lines=passage.lines,
                    page=passage.page,
                    title=passage.title,
                    heading=passage.heading,
                    text=passage.text,
                    highlights=mark.spans,
                    words=mark.words,
                    document_id=passage.document_id,
                    passage_id=passage.id,
                    metadata=passage.metadata,
                    file_sha256=passage.file_sha256.hex(),
                    also=tuple(
                        Place(root_of(p, roots), display_path(p.path), p.start, p.end, p.lines)
                        for _, p in group[1:]
                    ),
                )
            )
        return tuple(hits)


def unknown_share(text: str, tokenizer: Tokenizer) -> float:
    """The share of a text's tokens that a tokenizer does not know."""
    tokens = tokenizer.encode([text])[0]
    return float(tokens.unknown.mean()) if len(tokens) else 0.0


def display_path(path: bytes) -> str:
    """A stored path as text; bytes that are not UTF-8 are shown as \\xNN."""
    return path.decode("utf-8", "backslashreplace")


def root_of(passage: StoredPassage, roots: Mapping[int, str]) -> str:
    """The absolute path of a passage's root; empty for a text that is no file."""
    return roots.get(passage.root_id, "") if passage.root_id is not None else ""
