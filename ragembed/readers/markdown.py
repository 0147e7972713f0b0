"""Structure of Markdown (CommonMark with tables, front matter and admonitions), line by line.

This is a block parser only: it finds which lines belong together and never looks at inline
markup, except to clean a heading's title. Source: the CommonMark specification 0.31, chapters 4
and 5, and the table extension of GitHub Flavored Markdown.
"""

from __future__ import annotations

import re

from ragembed.readers.lines import BlockBuilder, Line, indented_end, run_end, split_lines
from ragembed.readers.titles import markdown_title
from ragembed.types import Block, BlockKind

_BULLET = re.compile(r"(?:[-+*]|\d{1,9}[.)])(?:[ \t]+|$)")
_ATX = re.compile(r"(#{1,6})(?:[ \t]|$)")
_FENCE = re.compile(r"(`{3,}|~{3,})")
_RULE = frozenset("-*_")
_TABLE_CHARACTERS = frozenset("|:- \t")
# A block of raw text that only its own end mark closes; every other tag ends at a blank line.
_RAW_HTML = re.compile(r"<(?:!--|script\b|pre\b|style\b|textarea\b|\?)", re.IGNORECASE)
_HTML = re.compile(
    r"</?(?:address|article|aside|blockquote|body|center|dd|details|dialog|div|dl|dt|fieldset|"
    r"figcaption|figure|footer|form|h[1-6]|head|header|hr|html|iframe|li|link|main|menu|nav|ol|"
    r"p|section|summary|table|tbody|td|tfoot|th|thead|title|tr|ul)\b",
    re.IGNORECASE,
)
_RAW_END = {"<!--": "-->", "<?": "?>"}
_ADMONITION = re.compile(r'(?:!!!|\?\?\?\+?)[ \t]+\S|===[ \t]*[+!]?[ \t]*"')
_SPECIAL = frozenset("#`~-+*_><|=!?0123456789")
_FIRST_MARKERS = ("-", "+", "*", "1.", "1)")
_CODE_INDENT = 4


def _is_rule(content: str) -> bool:
    mark = content[0]
    if mark not in _RULE or content.count(mark) < 3:
        return False
    return not content.replace(mark, "").strip()


def _is_setext(content: str) -> int:
    """2 under dashes, 1 under equals signs, 0 otherwise."""
    mark = content[0]
    if mark not in "=-" or content.count(mark) != len(content):
        return 0
    return 1 if mark == "=" else 2


def _cells(content: str) -> int:
    bars = content.count("|") - content.count("\\|")
    return bars + 1 - content.startswith("|") - (content.endswith("|") and bars > 0)


def _opens_table(lines: list[Line], at: int) -> bool:
    """Whether line `at` is a header row: the next one must be its delimiter row."""
    if at + 1 >= len(lines) or lines[at + 1].gap:
        return False
    header, under = lines[at].content, lines[at + 1].content
    if "|" not in under or "-" not in under or not set(under) <= _TABLE_CHARACTERS:
        return False
    return "|" in header and _cells(header) == _cells(under)


class _Parser:
    """Walks the lines once; `items` holds the content columns of the list items it is inside."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.builder = BlockBuilder(lines)
        self.items: list[tuple[int, BlockKind]] = []
        self.item_block = -1  # the block of the innermost item, while it may still grow
        self.unclosed: set[str] = set()

    def run(self, at: int) -> tuple[Block, ...]:
        while at < len(self.lines):
            at = self.block(at)
        return self.builder.blocks()

    @property
    def column(self) -> int:
        return self.items[-1][0] if self.items else 0

    def block(self, at: int) -> int:
        """Take the block that starts at line `at`; returns the line after it."""
        line = self.lines[at]
        while self.items and line.indent < self.column:
            self.items.pop()
            self.item_block = -1
        if line.indent - self.column >= _CODE_INDENT:
            if self.items and self.item_block == self.builder.last:
                return self.text(at)
            return self.builder.add(
                "code", indented_end(self.lines, at, self.column + _CODE_INDENT)
            )
        if line.content[0] not in _SPECIAL and not _opens_table(self.lines, at):
            return self.text(at)
        return self.special(at, line)

    def special(self, at: int, line: Line) -> int:
        content, add = line.content, self.builder.add
        if heading := _ATX.match(content):
            title = markdown_title(content[heading.end() :].strip())
            return add("heading", at + 1, len(heading.group(1)), title)
        if fence := self.fence(content):
            return add("code", self.fence_end(at, fence))
        if _is_rule(content):
            return add("paragraph", at + 1)
        if marker := _BULLET.match(content):
            return self.item(at, line.indent + max(2, len(marker.group())), "list_item")
        if _ADMONITION.match(content):
            return self.item(at, line.indent + _CODE_INDENT, "paragraph")
        if content[0] == "<" and _RAW_HTML.match(content):
            return add("paragraph", self.raw_html_end(at))
        if content[0] == "<" and _HTML.match(content):
            return add("paragraph", run_end(self.lines, at))
        if _opens_table(self.lines, at):
            return self.table(at)
        return self.text(at)

    @staticmethod
    def fence(content: str) -> str:
        """The fence that `content` opens, or ""."""
        match = _FENCE.match(content)
        if match is None or (content[0] == "`" and "`" in content[match.end() :]):
            return ""
        return match.group()

    def fence_end(self, at: int, fence: str) -> int:
        """The line after the closing fence, or where the item or the text ends without one."""
        column = self.column
        for stop in range(at + 1, len(self.lines)):
            line = self.lines[stop]
            if line.indent < column:
                return stop
            content = line.content
            if content.startswith(fence) and not content.strip(fence[0]):
                return stop + 1
        return len(self.lines)

    def raw_html_end(self, at: int) -> int:
        opening = self.lines[at].content
        match = _RAW_HTML.match(opening)
        tag = match.group().lower() if match else ""
        end = _RAW_END.get(tag, f"</{tag[1:]}")
        if end not in self.unclosed:
            for stop in range(at, len(self.lines)):
                if end in self.lines[stop].content[len(tag) if stop == at else 0 :].lower():
                    return stop + 1
            self.unclosed.add(end)  # looking once for each mark keeps the time linear
        return run_end(self.lines, at)  # never closed: do not take the rest of the text with it

    def table(self, at: int) -> int:
        at = self.builder.add("table_row", at + 2)
        while at < len(self.lines) and not self.lines[at].gap and not self.interrupts(at):
            at = self.builder.add("table_row", at + 1)
        return at

    def item(self, at: int, column: int, kind: BlockKind) -> int:
        """Take an item's first paragraph; what follows at its column belongs to it as well."""
        line = self.lines[at]
        rest = line.content.split(None, 1)
        if kind == "list_item" and len(rest) == 2:
            padding = len(line.content) - len(rest[0]) - len(rest[1])
            if padding > _CODE_INDENT:  # the item starts with indented code
                column = line.indent + len(rest[0]) + 1
        self.items.append((column, kind))
        if kind == "list_item" and len(rest) == 2 and (fence := self.fence(rest[1])):
            return self.builder.add("code", self.fence_end(at, fence))
        at = self.builder.add(kind, self.paragraph_end(at))
        self.item_block = self.builder.last
        return at

    def text(self, at: int) -> int:
        """A paragraph, the continuation of an item, or a heading underlined with = or -."""
        stop = self.paragraph_end(at)
        if self.items:
            if self.item_block == self.builder.last:
                return self.builder.extend(stop)
            stop = self.builder.add(self.items[-1][1], stop)
            self.item_block = self.builder.last
            return stop
        underlined = stop < len(self.lines) and not self.lines[stop].gap
        if underlined and self.lines[at].content[0] != ">":
            level = _is_setext(self.lines[stop].content)
            if level and self.lines[stop].indent < _CODE_INDENT:
                words = " ".join(line.content for line in self.lines[at : min(stop, at + 50)])
                return self.builder.add("heading", stop + 1, level, markdown_title(words))
        return self.builder.add("paragraph", stop)

    def paragraph_end(self, at: int) -> int:
        quoted = self.lines[at].content[0] == ">"
        stop = at + 1
        while stop < len(self.lines) and not self.lines[stop].gap:
            if self.interrupts(stop) and not (quoted and self.lines[stop].content[0] == ">"):
                break
            stop += 1
        return stop

    def interrupts(self, at: int) -> bool:
        """Whether line `at` ends the paragraph it follows without a blank line."""
        line = self.lines[at]
        content = line.content
        if content[0] not in _SPECIAL:
            return _opens_table(self.lines, at)
        if (marker := _BULLET.match(content)) and (
            (self.items and self.items[-1][1] == "list_item")
            or (marker.end() < len(content) and content.startswith(_FIRST_MARKERS))
        ):
            return True
        if line.indent >= self.column + _CODE_INDENT:
            return False
        if content[0] == ">":
            return True
        if _is_setext(content) and not self.items:
            return True
        return self.opens_block(at, content)

    def opens_block(self, at: int, content: str) -> bool:
        return bool(
            _ATX.match(content)
            or self.fence(content)
            or _is_rule(content)
            or (content[0] == "<" and (_RAW_HTML.match(content) or _HTML.match(content)))
            or _ADMONITION.match(content)
            or _opens_table(self.lines, at)
        )


def _front_matter_end(text: str, lines: list[Line]) -> int:
    """The line after the metadata that some texts start with, 0 where there is none."""
    opening = lines[0].content if lines and lines[0].first == 0 else ""
    closing = {"---": ("---", "..."), "+++": ("+++",)}.get(opening)
    if closing is None:
        return 0
    if len(lines) > 1 and lines[1].gap and opening == "---":
        return 0  # a rule, then text
    for at in range(1, len(lines)):
        if lines[at].indent == 0 and lines[at].content in closing:
            return at + 1
    return 0


def parse_markdown(text: str) -> tuple[Block, ...]:
    """The blocks of a Markdown text.

    >>> [block.kind for block in parse_markdown("- a\\n- b\\n\\n| x | y |\\n|---|---|\\n| 1 | 2 |")]
    ['list_item', 'list_item', 'table_row', 'table_row']
    """
    lines = split_lines(text)
    parser = _Parser(lines)
    start = _front_matter_end(text, lines)
    if start:
        parser.builder.add("paragraph", start)
    return parser.run(start)
