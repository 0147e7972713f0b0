"""Context: the best passages, packed under a token budget that holds for the whole rendered text.

Passages are taken in order of rank. One that does not fit gives as many of its sentences as do, the
best one first and its neighbours after; whatever is left out is listed. Sizes are estimated piece by
piece, and the rendered text is counted as a whole before it leaves: the budget is a bound.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ragembed.chunking import sentences
from ragembed.config import ContextConfig
from ragembed.render import Renderer, renderer
from ragembed.tokenizer import Tokenizer
from ragembed.types import Context, Hit, Omitted, Source

# With less room than this, a part of a passage says too little to be worth its header.
SMALLEST_PART = 48
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A hit, or the part [start, end) of its text."""

    hit: Hit
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.hit.text[self.start : self.end]

    def source(self, marker: int) -> Source:
        hit = self.hit
        lines = hit.lines
        if lines is not None:
            first = lines[0] + len(_LINE_END.findall(hit.text[: self.start]))
            lines = (first, first + len(_LINE_END.findall(self.text)))
        return Source(
            marker=str(marker),
            root=hit.root,
            path=hit.path,
            lines=lines,
            page=hit.page,
            start=hit.start + self.start,
            end=hit.start + self.end,
            sha256=hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest(),
            file_sha256=hit.file_sha256,
            score=hit.score,
            title=hit.title,
            heading=hit.heading,
        )


def build_context(
    question: str, hits: Sequence[Hit], tokenizer: Tokenizer, config: ContextConfig
) -> Context:
    """Pack hits, best first, into a text of at most `config.max_tokens` of the tokenizer's tokens.

    When nothing fits, the text is empty and every hit is listed as omitted.
    """
    writer = renderer(config.format)
    pieces: list[_Piece] = []
    left = config.max_tokens - tokenizer.count(writer.whole(question, ()))
    for hit in hits:
        piece = _Piece(hit, 0, len(hit.text))
        cost = _cost(piece, len(pieces) + 1, writer, tokenizer)
        if cost > left:
            part = _part(hit, len(pieces) + 1, left, writer, tokenizer)
            if part is None:
                continue
            piece, cost = part
        pieces.append(piece)
        left -= cost
    while True:
        sources = [(piece.source(n), piece.text) for n, piece in enumerate(pieces, start=1)]
        text = writer.whole(question, sources) if sources else ""
        tokens = tokenizer.count(text)
        if tokens <= config.max_tokens or not pieces:
            break
        pieces.pop()  # the estimate was a few tokens short
    return Context(
        question=question,
        text=text,
        tokens=tokens,
        max_tokens=config.max_tokens,
        tokenizer=tokenizer.name,
        sources=tuple(source for source, _ in sources),
        omitted=_omitted(hits, pieces),
    )


def _cost(piece: _Piece, marker: int, writer: Renderer, tokenizer: Tokenizer) -> int:
    return tokenizer.count(writer.one(piece.source(marker), piece.text))


def _part(
    hit: Hit, marker: int, room: int, writer: Renderer, tokenizer: Tokenizer
) -> tuple[_Piece, int] | None:
    """The best sentence of a hit and as many of its neighbours as there is room for."""
    if room < SMALLEST_PART:
        return None
    spans = sentences(hit.text)
    if len(spans) < 2:
        return None
    target = hit.highlights[-1] if hit.highlights else spans[0]
    first = last = next((n for n, (_, end) in enumerate(spans) if end > target[0]), 0)
    best = _Piece(hit, *spans[first])
    cost = _cost(best, marker, writer, tokenizer)
    if cost > room:
        return None
    grown = True
    while grown:
        grown = False
        for a, b in (
            (first, last + 1),
            (first - 1, last),
        ):  # the next sentence, then the one before
            if a < 0 or b >= len(spans) or (a, b) == (0, len(spans) - 1):
                continue
            wider = _Piece(hit, spans[a][0], spans[b][1])
            wider_cost = _cost(wider, marker, writer, tokenizer)
            if wider_cost <= room:
                best, cost, first, last, grown = wider, wider_cost, a, b, True
    return best, cost


def _omitted(hits: Sequence[Hit], pieces: Sequence[_Piece]) -> tuple[Omitted, ...]:
    used = {piece.hit.passage_id: piece for piece in pieces}
    omitted = []
    for hit in hits:
        piece = used.get(hit.passage_id)
        gaps = (
            [(0, len(hit.text))]
            if piece is None
            else [(0, piece.start), (piece.end, len(hit.text))]
        )
        omitted += [
            Omitted(
                root=hit.root,
                path=hit.path,
                start=hit.start + a,
                end=hit.start + b,
                reason="budget" if piece is None else "trimmed",
            )
            for a, b in gaps
            if hit.text[a:b].strip()
        ]
    return tuple(omitted)
