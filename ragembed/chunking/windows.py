"""Windows: overlapping slices of a passage, the unit of encoding, each of which the encoder reads whole.

Tokenising a slice on its own can give more tokens than the slice had in its passage (a word is cut,
or a run that was one unknown token is not any more), so every window is tokenised again, and one
that no longer fits is halved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragembed.config import ChunkingConfig
from ragembed.tokenizer import Tokenizer
from ragembed.types import Block, Window

# A token whose reach (up to the next token) is longer than this counts as several units.
_LONG_REACH = 40


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The tokens of a document: starts (n,) in code points, ascending, and which are unknown (n,)."""

    starts: NDArray[np.int64]
    unknown_before: NDArray[np.int64]

    @classmethod
    def of(cls, text: str, blocks: Sequence[Block], tokenizer: Tokenizer) -> TokenTable:
        """Tokenise block by block: no token spans two blocks, and long texts stay cheap."""
        encoded = tokenizer.encode([text[block.start : block.end] for block in blocks])
        starts = [
            tokens.offsets[:, 0].astype(np.int64) + block.start
            for tokens, block in zip(encoded, blocks, strict=True)
        ]
        unknown = [tokens.unknown for tokens in encoded]
        flags = np.concatenate(unknown) if unknown else np.zeros(0, dtype=np.bool_)
        return cls(
            np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64),
            np.concatenate([[0], np.cumsum(flags, dtype=np.int64)]),
        )

    def rank(self, offset: int) -> int:
        """Tokens that start before an offset."""
        return int(np.searchsorted(self.starts, offset))

    def count(self, start: int, end: int) -> int:
        """Tokens of a span."""
        return self.rank(end) - self.rank(start)

    def count_unknown(self, start: int, end: int) -> int:
        """Unknown tokens of a span."""
        return int(self.unknown_before[self.rank(end)] - self.unknown_before[self.rank(start)])

    def sizes(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64], characters_per_token: int
    ) -> NDArray[np.int64]:
        """Sizes (n,) of spans: tokens, or characters / `characters_per_token` where that is more."""
        tokens = np.searchsorted(self.starts, ends) - np.searchsorted(self.starts, starts)
        by_length = -(-(ends - starts) // characters_per_token)
        return np.asarray(np.maximum(tokens, by_length), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Reading:
    """How an encoder reads a text: its tokens, the unknown ones, its windows (offsets into the text)."""

    tokens: int
    unknown: int
    windows: tuple[Window, ...]


def read(texts: Sequence[str], tokenizer: Tokenizer, config: ChunkingConfig) -> list[Reading]:
    """Cut passages that are there already into windows for another encoder."""
    readings = []
    for text in texts:
        whole = Block(0, len(text), "paragraph")
        table = TokenTable.of(text, [whole], tokenizer)
        (windows,) = slide(text, [(0, len(text))], table, tokenizer, config)
        readings.append(
            Reading(table.count(0, len(text)), table.count_unknown(0, len(text)), windows)
        )
    return readings


def slide(
    text: str,
    passages: Sequence[tuple[int, int]],
    table: TokenTable,
    tokenizer: Tokenizer,
    config: ChunkingConfig,
) -> list[tuple[Window, ...]]:
    """The windows of each passage, in order."""
    spans = [_spans(text, start, end, table, config) for start, end in passages]
    flat = [Window(a, b, text[a:b]) for own in spans for a, b in own]
    fitting = iter(_fit(text, flat, tokenizer, config.window))
    return [tuple(window for _ in own for window in next(fitting)) for own in spans]


def _spans(
    text: str, start: int, end: int, table: TokenTable, config: ChunkingConfig
) -> list[tuple[int, int]]:
    """Slices of one passage of at most `window` tokens, a new one every `window - overlap`."""
    cap = config.window * config.characters_per_token
    if table.count(start, end) <= config.window and end - start <= cap:
        return [(start, end)]
    units = _units(table.starts[table.rank(start) : table.rank(end)], start, end)
    safe = _word_borders(text, units[:-1])
    spans: list[tuple[int, int]] = []
    first, covered = 0, 0  # units
    last = len(units) - 1
    while covered < last:
        reach = min(
            first + config.window, int(np.searchsorted(units, units[first] + cap, "right")) - 1
        )
        stop = last if reach >= last else _snap(safe, reach, max(covered, first) + 1)
        spans.append(_trim(text, int(units[first]), int(units[stop])))
        covered = stop
        target = min(first + config.window - config.overlap, stop)
        first = _snap(safe, target, first + 1)
    return [(a, b) for a, b in spans if a < b]


def _units(token_starts: NDArray[np.int64], start: int, end: int) -> NDArray[np.int64]:
    """Borders (units + 1,) of the pieces that windows are made of: tokens with what follows them.

    A token that reaches far (an unknown run, blanks) is broken up, so that a window can end in it.
    """
    borders = np.concatenate([[start], token_starts[token_starts > start], [end]])
    reach = np.diff(borders)
    long = np.flatnonzero(reach > _LONG_REACH)
    if not len(long):
        return borders
    extra = [np.arange(borders[n] + 10, borders[n + 1], 10) for n in long.tolist()]
    return np.sort(np.concatenate([borders, *extra]))


def _word_borders(text: str, units: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a window may start or end without cutting a word: (n,) flags, one a unit."""
    return np.array(
        [
            n == 0 or not (text[at - 1].isalnum() and text[at].isalnum())
            for n, at in enumerate(units.tolist())
        ],
        dtype=np.bool_,
    )


def _snap(safe: NDArray[np.bool_], target: int, lowest: int) -> int:
    """The last word border in [lowest, target]; target itself where a word fills all of it."""
    for unit in range(target, lowest - 1, -1):
        if unit >= len(safe) or safe[unit]:
            return unit
    return max(target, lowest)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    return (start + left, start + len(piece.rstrip())) if left < len(piece) else (start, start)


def _fit(
    text: str, windows: Sequence[Window], tokenizer: Tokenizer, limit: int
) -> list[list[Window]]:
    """Each window, or its halves where it has more than `limit` tokens on its own."""
    counts = [len(tokens.ids) for tokens in tokenizer.encode([w.text for w in windows])]
    fitted: list[list[Window]] = []
    for window, count in zip(windows, counts, strict=True):
        if count <= limit or len(window.text) < 2:
            fitted.append([window])
            continue
        middle = (window.start + window.end) // 2
        halves = (_trim(text, window.start, middle), _trim(text, middle, window.end))
        parts = [Window(a, b, text[a:b]) for a, b in halves if a < b]
        fitted.append([w for group in _fit(text, parts, tokenizer, limit) for w in group])
    return fitted
