"""Highlights: the best window of a hit, the best sentence in it, and the words that matched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ragembed.chunking import sentences
from ragembed.encoder.embedder import Embedder
from ragembed.index.analysis import Matcher
from ragembed.index.rows import StoredPassage

Span = tuple[int, int]
_HEADING_MARKS = " \t\r\n#=-~^\"'*+.`"


@dataclass(frozen=True, slots=True)
class Marks:
    """Spans relative to a passage's text: its best window and sentence, and matched words."""

    spans: tuple[Span, ...]
    words: tuple[Span, ...]


class Highlighter:
    """Marks passages for one query.

    The best sentence is the one whose matched words are the rarest together; where none matches, the
    one nearest to the query in meaning, if there is an embedder.
    """

    def __init__(
        self,
        query: str,
        terms: Sequence[str],
        document_frequency: Callable[[str], int],
        embedder: Callable[[], Embedder] | None,
    ) -> None:
        self._query = query
        self._matcher = Matcher(terms)
        self._document_frequency = document_frequency
        self._embedder = embedder
        self._rarity: dict[str, float] = {}

    def mark(self, found: Sequence[tuple[StoredPassage, Span | None]]) -> list[Marks]:
        """Marks of each passage, given its best window in the document's offsets."""
        marked: list[tuple[Span, Span | None, tuple[Span, ...]]] = []
        undecided: list[tuple[int, list[Span], str]] = []
        for n, (passage, window) in enumerate(found):
            start, end = window or (passage.start, passage.end)
            area = (start - passage.start, end - passage.start)
            words = self._matcher.find(passage.text, passage.language)
            choices = _sentences_within(passage.text, area, passage.heading)
            best = self._rarest(choices, words)
            if best is None and len(choices) > 1:
                undecided.append((n, choices, passage.text))
            elif best is None and choices:
                best = choices[0]
            marked.append((area, best, tuple((a, b) for a, b, _ in words)))
        nearest = self._nearest(undecided)
        return [
            Marks((area, best) if (best := nearest.get(n, sentence)) else (area,), words)
            for n, (area, sentence, words) in enumerate(marked)
        ]

    def _rarest(
        self, choices: Sequence[Span], words: Sequence[tuple[int, int, str]]
    ) -> Span | None:
        best, top = None, 0.0
        for start, end in choices:
            inside = {term for a, b, term in words if start <= a and b <= end}
            score = sum(self._rarity_of(term) for term in inside)
            if score > top:
                best, top = (start, end), score
        return best

    def _rarity_of(self, term: str) -> float:
        if term not in self._rarity:
            self._rarity[term] = 1.0 / math.log(2.0 + self._document_frequency(term))
        return self._rarity[term]

    def _nearest(self, undecided: Sequence[tuple[int, list[Span], str]]) -> dict[int, Span]:
        if not undecided or self._embedder is None:
            return {}
        texts = [text[a:b] for _, choices, text in undecided for a, b in choices]
        embedder = self._embedder()
        query = embedder.encode_query([self._query])[0]
        cosines = iter((embedder.encode_document(texts) @ query).tolist())
        best = {}
        for n, choices, _ in undecided:
            scored = [(next(cosines), choice) for choice in choices]
            best[n] = max(scored, key=lambda pair: pair[0])[1]
        return best


def _sentences_within(text: str, area: Span, heading: Sequence[str]) -> list[Span]:
    """Sentences of a text cut to an area; headings only where there is nothing else."""
    start, end = area
    cut = [(max(a, start), min(b, end)) for a, b in sentences(text) if b > start and a < end]
    filled = [(a, b) for a, b in cut if text[a:b].strip()]
    body = [(a, b) for a, b in filled if text[a:b].strip(_HEADING_MARKS) not in heading]
    return body or filled
