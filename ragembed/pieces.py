"""Texts as encoders can take them: in pieces, and well-formed.

Texts longer than `PIECE` characters are cut into pieces before they are encoded: the Rust code
under tiktoken panics on a run of about a million blanks, and memory stays bounded. A cut falls
between a letter or digit and a blank or punctuation mark, where every known pre-split pattern
(GPT-2, cl100k, o200k, BERT, ours) has a border anyway, so the ids stay the same; only a stretch
of `PIECE / 2` characters without such a place is cut at any character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 100_000  # most characters handed to an encoder at once

# Where a text is best cut, the better kind first: words of SentencePiece may hold marks.
_BORDERS = (frozenset(" \n\t\r\u3000"), frozenset('.,;:!?()[]{}"<>=/，。、；：！？（）「」《》'))
_SURROGATE = re.compile("[\ud800-\udfff]")


def pieces(text: str, limit: int = PIECE) -> Iterator[tuple[int, str]]:
    """Cut into parts of at most `limit` characters, each with its offset; see the module's text.

    >>> list(pieces("one two three", limit=8))
    [(0, 'one two'), (7, ' three')]
    """
    start = 0
    while len(text) - start > limit:
        places = range(start + limit, start + limit // 2, -1)
        found = (at for kind in _BORDERS for at in places if text[at] in kind)
        cut = next((at for at in found if text[at - 1].isalnum()), start + limit)
        yield start, text[start:cut]
        start = cut
    yield start, text[start:]


def well_formed(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD: same length, and UTF-8 can hold it."""
    if not text.isascii() and _SURROGATE.search(text):
        return _SURROGATE.sub("\ufffd", text)
    return text
