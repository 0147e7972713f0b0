"""Structure of reStructuredText, line by line.

Directives and comments are kept as text: their first lines are paragraphs, bodies that hold code
are code, other bodies are read like any text, so that the lists and tables in them are found.
Source: the reStructuredText Markup Specification of docutils 0.21.
"""

from __future__ import annotations

import re

from ragembed.readers.lines import BlockBuilder, Line, indented_end, run_end, split_lines
from ragembed.readers.rst_tables import is_simple_border, table_end, table_rows
from ragembed.readers.titles import rst_title
from ragembed.types import Block, BlockKind

_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_MARKER = re.compile(
    r"(?:[-*+\u2022\u2023\u2043]|\(?(?:\d{1,9}|#|[A-Za-z]|[ivxlcdm]{2,9}|[IVXLCDM]{2,9})[.)])"
    r"(?:[ \t]+|$)"
)
_DIRECTIVE = re.compile(r"\.\.[ \t]+(?:\|[^|]*\|[ \t]+)?([A-Za-z][\w.+-]*(?::[\w.+-]+)?)[ \t]*::")
_FIELD = re.compile(r":(?![: ])[^:]{1,200}:(?:\s|$)")
_CODE_DIRECTIVES = frozenset(
    "code code-block sourcecode literalinclude parsed-literal math doctest testcode testoutput "
    "testsetup testcleanup highlight productionlist ipython prompt raw csv-table graphviz "
    "digraph mermaid uml plantuml c:macro".split()
)
_SHORTEST_LINE = 4  # an adornment this long counts even if the title is longer


def _adornment(content: str) -> str:
    """The one punctuation character that the line repeats, or ""."""
    mark = content[0]
    return mark if mark in _PUNCTUATION and content == mark * len(content) else ""


class _Parser:
    """Walks the lines once; `items` holds the content columns of the items it is inside."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.builder = BlockBuilder(lines)
        self.items: list[int] = []
        self.item_block = -1  # the block of the innermost item, while it may still grow
        self.levels: list[tuple[str, bool]] = []  # section styles in order of appearance
        self.literal = -1  # text indented deeper than this column is a literal block

    def run(self) -> tuple[Block, ...]:
        at = 0
        while at < len(self.lines):
            at = self.block(at)
        return self.builder.blocks()

    def block(self, at: int) -> int:
        """Take the block that starts at line `at`; returns the line after it."""
        line = self.lines[at]
        while self.items and line.indent < self.items[-1]:
            self.items.pop()
            self.item_block = -1
        literal, self.literal = self.literal, -1
        if 0 <= literal < line.indent:
            return self.builder.add("code", indented_end(self.lines, at, literal + 1))
        if line.content[0] in _PUNCTUATION and (stop := self.markup(at, line)):
            return stop
        if line.indent == 0 and (stop := self.underlined(at)):
            return stop
        if marker := _MARKER.match(line.content):
            return self.item(at, line.indent + max(2, len(marker.group())))
        return self.text(at)

    def markup(self, at: int, line: Line) -> int:
        """Blocks that open with punctuation; 0 if this is none of them."""
        content, add = line.content, self.builder.add
        if content.startswith("..") and (len(content) == 2 or content[2] in " \t"):
            return self.explicit(at, line)
        if stop := table_end(self.lines, at):
            for row in table_rows(self.lines, at, stop):
                add("table_row", row)
            return stop
        if _adornment(content):
            return self.overlined(at) or self.underlined(at) or self.rule(at)
        if content.startswith(">>> "):
            return add("code", run_end(self.lines, at))
        if _FIELD.match(content):
            return self.fields(at, line)
        return 0

    def explicit(self, at: int, line: Line) -> int:
        """A directive, comment, footnote or target: `.. something`."""
        directive = _DIRECTIVE.match(line.content)
        if directive and directive.group(1).lower() in _CODE_DIRECTIVES:
            return self.builder.add("code", indented_end(self.lines, at + 1, line.indent + 1))
        stop = at + 1
        while (
            stop < len(self.lines)
            and not self.lines[stop].gap
            and self.lines[stop].indent > line.indent
        ):
            stop += 1
        return self.builder.add("paragraph", stop)

    def fields(self, at: int, line: Line) -> int:
        stop = at + 1
        while (
            stop < len(self.lines)
            and not self.lines[stop].gap
            and (self.lines[stop].indent > line.indent or _FIELD.match(self.lines[stop].content))
        ):
            stop += 1
        return self.builder.add("paragraph", stop)

    def rule(self, at: int) -> int:
        alone = at + 1 >= len(self.lines) or self.lines[at + 1].gap
        long_enough = len(self.lines[at].content) >= _SHORTEST_LINE
        return self.builder.add("paragraph", at + 1) if alone and long_enough else 0

    def overlined(self, at: int) -> int:
        if at + 2 >= len(self.lines) or self.lines[at].indent:
            return 0
        over, title, under = self.lines[at : at + 3]
        if title.gap or under.gap or over.content != under.content or _adornment(title.content):
            return 0
        return self.heading(at + 1, at + 2, overlined=True)

    def underlined(self, at: int) -> int:
        if at + 1 >= len(self.lines) or self.lines[at + 1].gap or self.lines[at + 1].indent:
            return 0
        if not _adornment(self.lines[at + 1].content) or _adornment(self.lines[at].content):
            return 0
        return self.heading(at, at + 1, overlined=False)

    def heading(self, title: int, under: int, *, overlined: bool) -> int:
        words, line = self.lines[title].content, self.lines[under].content
        if len(line) < min(len(words), _SHORTEST_LINE) or (len(line) < 2 and len(words) > 1):
            return 0
        style = (line[0], overlined)
        if style not in self.levels:
            self.levels.append(style)
        self.items.clear()
        return self.builder.add(
            "heading", under + 1, self.levels.index(style) + 1, rst_title(words)
        )

    def item(self, at: int, column: int) -> int:
        self.items.append(column)
        return self.grow("list_item", at)

    def grow(self, kind: BlockKind, at: int) -> int:
        stop = self.builder.add(kind, self.paragraph_end(at))
        self.item_block = self.builder.last if kind == "list_item" else -1
        return stop

    def text(self, at: int) -> int:
        """A paragraph, an item of a definition list, or the continuation of an item."""
        if self.items and self.item_block == self.builder.last:
            return self.builder.extend(self.paragraph_end(at))
        following = self.lines[at + 1] if at + 1 < len(self.lines) else None
        if following and not following.gap and following.indent > self.lines[at].indent:
            return self.grow("list_item", at)
        return self.grow("list_item" if self.items else "paragraph", at)

    def paragraph_end(self, start: int) -> int:
        """The end of the paragraph at `start`; notes whether `::` announces a literal block."""
        first = self.lines[start]
        items = bool(self.items)
        stop = start + 1
        while stop < len(self.lines):
            line = self.lines[stop]
            if line.gap or line.indent < first.indent:
                break
            if line.content[0] in _PUNCTUATION and self.starts_block(stop, line):
                break
            if items and line.indent <= first.indent and _MARKER.match(line.content):
                break
            stop += 1
        if self.lines[stop - 1].content.endswith("::"):
            self.literal = min(line.indent for line in self.lines[start:stop])
        return stop

    def starts_block(self, at: int, line: Line) -> bool:
        return (line.content.startswith(".. ") and bool(_DIRECTIVE.match(line.content))) or (
            is_simple_border(line.content)
        )


def parse_rst(text: str) -> tuple[Block, ...]:
    """The blocks of a reStructuredText document.

    >>> [(b.kind, b.level, b.title) for b in parse_rst("Title\\n=====\\n\\n* one\\n* two\\n")]
    [('heading', 1, 'Title'), ('list_item', 0, ''), ('list_item', 0, '')]
    """
    return _Parser(split_lines(text)).run()
