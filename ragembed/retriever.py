"""Retrieval: a query in, hits out. The ranking is in `ranking`, the marks in `highlight`."""

from __future__ import annotations

import operator
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from ragembed.config import RetrievalConfig
from ragembed.encoder.embedder import Embedder
from ragembed.errors import InvalidInput
from ragembed.highlight import Highlighter
from ragembed.index import lookup
from ragembed.index.analysis import query_terms
from ragembed.index.rows import StoredPassage
from ragembed.index.snapshot import Searcher, Snapshot
from ragembed.ranking import Candidate, Query, Ranking
from ragembed.tokenizer import Tokenizer
from ragembed.types import Hit, Mode, Place, SearchResult

MAX_K = 10_000
MAX_RANKED = 100_000  # passages that are looked at for k distinct texts


class Retriever:
    """Answers queries from one index with one embedder."""

    def __init__(
        self,
        searcher: Searcher,
        embedder: Callable[[], Embedder],
        tokenizer: Callable[[], Tokenizer],
        config: RetrievalConfig,
        root_name: Callable[[str], str] = str,
    ) -> None:
        """`embedder` and `tokenizer` are called when a mode first needs them: lexical search does not
        load a model. `embedder` gives the one whose vectors the index answers with at that moment.
        `root_name` says where a stored root is now."""
        self._searcher = searcher
        self._embedder = embedder
        self._tokenizer = tokenizer
        self._config = config
        self._root_name = root_name

    def search(
        self,
        query: str,
        k: int,
        mode: Mode,
        *,
        documents: Collection[int] | None = None,
        nearest_sentence: bool = True,
    ) -> SearchResult:
        """The k best passages, counted after equal texts have been folded into one hit.

        `documents` are the ids of the only documents to search in; None searches all. The filter
        comes before the search: there are k hits if these documents have so many passages.
        `nearest_sentence` lets the model choose the highlighted sentence where no word matches.

        Raises:
            InvalidInput: a blank query, a k below 1 or above 10,000, an unknown mode.
        """
        if not query.strip():
            raise InvalidInput("the query is blank; say what to look for")
        if not isinstance(k, int) or not 1 <= k <= MAX_K:
            raise InvalidInput(f"k is {k}; it must lie between 1 and {MAX_K:,}")
        if mode not in ("hybrid", "dense", "lexical"):
            raise InvalidInput(f"mode {mode!r} is not one of hybrid, dense, lexical")
        text = query.encode("utf-8", "replace").decode()  # a lone surrogate has no tokens
        chosen = None if documents is None else _document_ids(documents)
        while True:
            vector, fingerprint = None, ""
            if mode != "lexical" and self._has_model():
                embedder = self._embedder()
                vector, fingerprint = embedder.encode_query([text])[0], embedder.fingerprint
            with self._searcher.snapshot() as snapshot:
                model = snapshot.model
                if vector is not None and model is not None and model.fingerprint != fingerprint:
                    continue  # another process has switched to another model meanwhile
                terms = query_terms(text, snapshot.store.languages())
                asked = Query(text, terms, vector, mode, chosen)
                marked = nearest_sentence and mode != "lexical"
                hits = self._enough(snapshot, asked, k, marked)
                return SearchResult(query=text, mode=mode, hits=hits)

    def _enough(
        self, snapshot: Snapshot, query: Query, k: int, nearest_sentence: bool
    ) -> tuple[Hit, ...]:
        """k hits, if there are so many distinct texts: where copies of a few fill the ranking, more of it
        is asked for."""
        ranking = Ranking(snapshot, self._tokenizer, self._config)
        wanted = max(k, self._config.candidates)
        while True:
            ranked = ranking.rank(query, wanted)
            hits = self._hits(snapshot, ranked, query, k, nearest_sentence)
            if len(hits) >= k or len(ranked) < wanted or wanted >= MAX_RANKED:
                return hits
            wanted = min(MAX_RANKED, 4 * wanted)

    def _has_model(self) -> bool:
        with self._searcher.reading() as store:
            return store.model() is not None

    def _hits(
        self,
        snapshot: Snapshot,
        ranked: Sequence[Candidate],
        query: Query,
        k: int,
        nearest_sentence: bool,
    ) -> tuple[Hit, ...]:
        """The first k distinct texts as hits; each also names the other places it stands in."""
        groups: dict[str, list[tuple[Candidate, StoredPassage]]] = defaultdict(list)
        taken = 0
        while taken < len(ranked):  # a part at a time: k hits rarely need more passages than that
            part = ranked[taken : taken + 2 * k + 20]
            taken += len(part)
            passages = lookup.passages(snapshot.store, [c.passage_id for c in part])
            for candidate in part:
                passage = passages.get(candidate.passage_id)
                if passage is not None and (len(groups) < k or passage.text in groups):
                    groups[passage.text].append((candidate, passage))
            if len(groups) >= k:
                break
        roots = {
            root.id: self._root_name(os.fsdecode(root.path)) for root in snapshot.store.roots()
        }
        embedder = self._embedder if nearest_sentence else None
        highlighter = Highlighter(query.text, query.terms, snapshot.document_frequency, embedder)
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


def _document_ids(documents: Collection[int]) -> tuple[int, ...]:
    """Sorted ids, each once; those that no document can have are left out.

    Raises:
        InvalidInput: something that is not a whole number.
    """
    try:
        ids = {operator.index(id) for id in documents}
    except TypeError as error:
        raise InvalidInput(f"documents are named by id, a whole number: {error}") from None
    return tuple(sorted(id for id in ids if 0 < id < 1 << 63))


def display_path(path: bytes) -> str:
    """A stored path as text; bytes that are not UTF-8 are shown as \\xNN."""
    return path.decode("utf-8", "backslashreplace")


def root_of(passage: StoredPassage, roots: Mapping[int, str]) -> str:
    """The absolute path of a passage's root; empty for a text that is no file."""
    return roots.get(passage.root_id, "") if passage.root_id is not None else ""
