"""Lines and the blocks built from them: what every structure parser has in common.

A parser hands whole lines to a `BlockBuilder`, in order and each exactly once. That alone makes
the blocks ordered, free of overlap, and complete: no parser can lose text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ragembed.types import Block, BlockKind

# Only these separate lines; str.splitlines would also cut at form feeds and U+2028.
_CONTENT = re.compile(r"[^\r\n]+")
_TAB = 4


class Line(NamedTuple):
    """A line that is not blank: `text[first:last]` is its content without surrounding space.

    `indent` counts columns before the content (tabs stop at multiples of 4), and `gap` says
    whether blank lines, or the start of the text, come before it.
    """

    first: int
    last: int
    indent: int
    gap: bool
    content: str


def split_lines(text: str) -> list[Line]:
    """The lines of a text that hold something; time and memory are linear in the text.

    >>> [(line.content, line.indent, line.gap) for line in split_lines("a\\r\\n  b\\n\\nc")]
    [('a', 0, True), ('b', 2, False), ('c', 0, True)]
    """
    lines: list[Line] = []
    gap = True
    previous_end = 0
    for match in _CONTENT.finditer(text):
        start, end = match.span()
        breaks = start - previous_end
        if breaks > 1 and not (breaks == 2 and text.startswith("\r\n", previous_end)):
            gap = True
        previous_end = end
        raw = match.group()
        content = raw.strip()
        if not content:
            gap = True
            continue
        first = start + len(raw) - len(raw.lstrip())
        indent = first - start
        if indent and "\t" in raw[:indent]:
            indent = len(raw[:indent].expandtabs(_TAB))
        lines.append(Line(first, first + len(content), indent, gap, content))
        gap = False
    return lines


class BlockBuilder:
    """Collects blocks as runs of whole lines."""

    def __init__(self, lines: list[Line]) -> None:
        self._lines = lines
        self._blocks: list[tuple[BlockKind, int, int, int, str]] = []
        self._next = 0

    def add(self, kind: BlockKind, stop: int, level: int = 0, title: str = "") -> int:
        """Make one block of the lines not yet taken that come before `stop`; returns `stop`."""
        if stop <= self._next:
            raise ValueError(f"block ends at line {stop}, but {self._next} lines are taken already")
        self._blocks.append((kind, self._next, stop, level, title))
        self._next = stop
        return stop

    def extend(self, stop: int) -> int:
        """Let the last block reach up to `stop`; returns `stop`."""
        kind, start, _, level, title = self._blocks.pop()
        self._next = start
        return self.add(kind, stop, level, title)

    @property
    def last(self) -> int:
        """The number of the last block, -1 before the first."""
        return len(self._blocks) - 1

    def blocks(self) -> tuple[Block, ...]:
        """The blocks, as offsets into the text."""
        lines = self._lines
        return tuple(
            Block(lines[start].first, lines[stop - 1].last, kind, level, title)
            for kind, start, stop, level, title in self._blocks
        )


def run_end(lines: list[Line], start: int) -> int:
    """The line after the last one that follows `start` without a blank line between."""
    stop = start + 1
    while stop < len(lines) and not lines[stop].gap:
        stop += 1
    return stop


def indented_end(lines: list[Line], start: int, indent: int) -> int:
    """The first line from `start` on that is indented by less than `indent` columns."""
    stop = start
    while stop < len(lines) and lines[stop].indent >= indent:
        stop += 1
    return stop
