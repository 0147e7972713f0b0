"""Where a text may be cut: at sentences, else lines, else words, else characters.

All functions take `text` and a span of it and return the starts of the pieces inside that span, as
offsets into `text`; the first piece starts at the span's start. The rules look at a few characters
on either side only, so an edit moves no border but those beside it. They follow the spirit of
Unicode's text segmentation (UAX #29) without its tables.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

# A full stop, an optional closing quote or bracket, then space and something that is not lower case;
# or one of the full stops of scripts that put no space behind them. The look-behind starts a run of
# marks once, at its first: a megabyte of dots stays linear.
_SENTENCE_END = re.compile(
    r"""(?<![.!?\u2026\u061f\u06d4\u0964\u0965])(?P<spaced>[.!?\u2026\u061f\u06d4\u0964\u0965]+["'\u2019\u201d\u00bb)\]]*)\s+"""
    r"""|[\u3002\uff01\uff1f\uff0e\uff61]+["'\u2019\u201d\u300d\u300f\uff09\u3011]*\s*"""
)
# Words that end in a full stop without ending a sentence, and initials ("J. Doe").
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:[A-Za-z]|e\.g|i\.e|etc|cf|vs|al|fig|eq|no|vol|pp|ca|approx|inc|ltd|co"
    r"|dr|mr|mrs|ms|prof|st|jr|sr|dept|est|z\.b|d\.h|bzw|usw|vgl|nr|bspw)\.$",
    re.IGNORECASE,
)
_LINE_END = re.compile(r"(?:\r\n|\r|\n)\s*")
_BLANK_LINES = re.compile(r"(?:\r\n|\r|\n)[^\S\r\n]*(?:\r\n|\r|\n)\s*")
_WORD_END = re.compile(r"\s+")
_LOOK_BACK = 12


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of a text as spans without the blanks between them; a blank line ends one.

    >>> text = "Dr. No fled. Did he? 他走了。真的吗？"
    >>> [text[a:b] for a, b in sentences(text)]
    ['Dr. No fled.', 'Did he?', '他走了。', '真的吗？']
    """
    blank_lines = {match.end() for match in _BLANK_LINES.finditer(text)}
    starts = sorted({*sentence_starts(text, 0, len(text)).tolist(), *blank_lines, len(text)})
    spans = []
    for a, b in zip(starts, starts[1:], strict=False):
        piece = text[a:b]
        stripped = piece.strip()
        if stripped:
            start = a + len(piece) - len(piece.lstrip())
            spans.append((start, start + len(stripped)))
    return spans


def sentence_starts(text: str, start: int, end: int) -> NDArray[np.int64]:
    """Starts of the sentences in text[start:end]."""
    starts = [start]
    for match in _SENTENCE_END.finditer(text, start, end):
        after = match.end()
        if after >= end:
            break
        if match["spaced"] and (
            text[after].islower()
            or _ABBREVIATION.search(text, max(start, match.start() - _LOOK_BACK), match.start() + 1)
        ):
            continue
        starts.append(after)
    return np.array(starts, dtype=np.int64)


def line_starts(text: str, start: int, end: int) -> NDArray[np.int64]:
    """Starts of the non-blank lines in text[start:end]."""
    return _after(_LINE_END, text, start, end)


def word_starts(text: str, start: int, end: int) -> NDArray[np.int64]:
    """Starts of the runs of non-blank characters in text[start:end]."""
    return _after(_WORD_END, text, start, end)


def _after(pattern: re.Pattern[str], text: str, start: int, end: int) -> NDArray[np.int64]:
    ends = [m.end() for m in pattern.finditer(text, start, end) if m.end() < end]
    return np.array([start, *(e for e in ends if e > start)], dtype=np.int64)


def character_starts(text: str, start: int, end: int) -> NDArray[np.int64]:
    """Starts of the user-perceived characters in text[start:end].

    A base character keeps its combining marks, variation selectors and joined emoji.
    """
    starts = [start]
    previous = text[start : start + 1]
    for offset in range(start + 1, end):
        character = text[offset]
        if not _extends(previous, character):
            starts.append(offset)
        previous = character
    return np.array(starts, dtype=np.int64)


def _extends(previous: str, character: str) -> bool:
    if character < "\u0300":
        return previous == "\r" and character == "\n"
    return (
        previous == "\u200d"  # zero-width joiner
        or character == "\u200d"
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or unicodedata.category(character) in ("Mn", "Mc", "Me")
    )
