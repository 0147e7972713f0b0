"""Where a span stands for a person: its lines, or its page."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

_LINE_END = re.compile(r"\r\n|\r|\n")


class LineNumbers:
    """Line numbers, from 1, of offsets into a text; \\n, \\r\\n and \\r end a line.

    >>> LineNumbers("a\\nbc\\n").span(2, 4)
    (2, 2)
    """

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """First and last line of [start, end)."""
        return self._line(start), self._line(max(start, end - 1))

    def _line(self, offset: int) -> int:
        return bisect_right(self._starts, offset)


def page_of(pages: Sequence[int], start: int) -> int | None:
    """The page, from 1, that an offset is on; None where a document has no pages."""
    return bisect_right(pages, start) or None if pages else None
