"""Laying out an HTML tree as plain text, with blocks; a page may be nested as deep as it likes."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborNode

from ragembed.types import Block, BlockKind

_DROPPED = frozenset(
    "script style template noscript svg head title iframe object embed canvas audio video map "
    "button select textarea input option datalist meter progress frameset dialog".split()
)
_BOILERPLATE = frozenset("nav footer aside".split())
_BOILERPLATE_ROLES = frozenset("navigation contentinfo complementary search banner menu".split())
_BLOCK = frozenset(
    "address article aside blockquote body center dd details dir div dl dt fieldset figcaption "
    "figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p pre "
    "section summary table caption thead tbody tfoot tr td th ul".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
# What a cell of a table of data does not hold: such a table only arranges a page.
_LAYOUT_CONTENT = "table, h1, h2, h3, h4, h5, h6, ul, ol, pre, p + p, br + br, blockquote"
_LONGEST_CELL = 1000
_DEEPEST_INDENT = 8  # else a page of nested lists grows quadratically


class Layout:
    """Text and blocks under construction.

    `strict` leaves out navigation, footers and asides as well. `size` counts the characters.
    """

    def __init__(self, *, strict: bool) -> None:
        self.blocks: list[Block] = []
        self.size = 0
        self._strict = strict
        self._parts: list[str] = []
        self._inline: list[str] = []
        self._lists = 0  # how many lists deep
        self._bullet = False  # the next text opens a list item
        self._items: list[int] = []  # list depth of the items we are in
        self._cells: list[str] | None = None  # of the row of data we are in
        self._rows: list[bool] = []  # whether each open table holds data
        self._heading = 0
        self._breaks = 0

    def text(self) -> str:
        """All of it."""
        return "".join(self._parts)

    def render(self, root: LexborNode) -> None:
        """Walk the tree below `root` without recursion."""
        node = root
        depth = 0  # nodes are not compared: selectolax would compare their whole source
        entered = self._enter(node)
        while True:
            child = node.child if entered else None
            if child is not None:
                node, depth = child, depth + 1
                entered = self._enter(node)
                continue
            if entered:
                self._leave(node)
            following = None
            while depth and (following := node.next) is None:
                parent = node.parent
                if parent is None:
                    break
                node, depth = parent, depth - 1
                self._leave(node)
            if following is None:
                break
            node = following
            entered = self._enter(node)
        self._flush()

    def _enter(self, node: LexborNode) -> bool:
        """Open a node; False if what is in it is not to be walked."""
        tag = node.tag or ""
        if tag == "-text":
            self._add(node.text_content or "")
            return False
        if tag.startswith("-") or tag == "!doctype" or self._is_dropped(node, tag):
            return False
        if tag == "br":
            self._break()
            return False
        if tag == "pre" and self._cells is None:
            self._pre(node)
            return False
        if tag in _BLOCK:
            self._open(node, tag)
        return True

    def _is_dropped(self, node: LexborNode, tag: str) -> bool:
        if tag in _DROPPED or (self._strict and tag in _BOILERPLATE):
            return True
        attributes = node.attributes
        if not attributes or tag in ("html", "body"):
            return False
        if "hidden" in attributes or attributes.get("aria-hidden") == "true":
            return True
        if _HIDDEN_STYLE.search(attributes.get("style") or ""):
            return True
        return self._strict and (attributes.get("role") or "") in _BOILERPLATE_ROLES

    def _open(self, node: LexborNode, tag: str) -> None:
        if tag in ("td", "th") and self._cells is not None:
            self._cells.append("")
            return
        if self._cells is not None:
            self._add(" ")
            if tag != "table":
                return
        self._flush()
        if tag in _HEADINGS:
            self._heading = _HEADINGS[tag]
        elif tag in ("ul", "ol", "menu", "dir"):
            self._lists += 1
        elif tag in ("li", "dt", "dd"):
            self._items.append(self._lists)
            self._bullet = tag == "li"
        elif tag == "table":
            self._rows.append(_holds_data(node))
        elif tag == "tr" and self._rows and self._rows[-1]:
            self._cells = []

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if tag not in _BLOCK:
            return
        if tag == "tr" and self._cells is not None:
            cells, self._cells = [" ".join(cell.split()) for cell in self._cells], None
            self._inline.clear()
            if any(cells):
                self._emit(" | ".join(cells).strip(), "table_row", "\n")
            return
        if self._cells is not None:
            self._add(" ")
            return
        self._flush()
        if tag in _HEADINGS:
            self._heading = 0
        elif tag in ("ul", "ol", "menu", "dir"):
            self._lists = max(0, self._lists - 1)
        elif tag in ("li", "dt", "dd") and self._items:
            self._items.pop()
            self._bullet = False
        elif tag == "table" and self._rows:
            self._rows.pop()

    def _add(self, text: str) -> None:
        if self._cells is not None:
            if self._cells:
                self._cells[-1] += text
            return
        if self._breaks and text.strip():
            self._breaks = 0
        self._inline.append(text)

    def _break(self) -> None:
        if self._cells is not None:
            self._add(" ")
            return
        self._breaks += 1
        if self._breaks > 1:  # two line breaks stand for a paragraph
            self._flush()
        else:
            self._inline.append("\x00")

    def _flush(self) -> None:
        """Make a block of the inline text gathered so far."""
        self._breaks = 0
        raw = "".join(self._inline)
        self._inline.clear()
        lines = (" ".join(line.split()) for line in raw.split("\x00"))
        text = "\n".join(line for line in lines if line)
        if not text:
            return
        if self._heading:
            title = text.replace("\n", " ")
            self._emit(title, "heading", "\n\n", self._heading, title)
        elif self._items:
            indent = "  " * min(_DEEPEST_INDENT, max(0, self._items[-1] - 1))
            mark = "- " if self._bullet else "  " if self._items[-1] else ""
            self._bullet = False
            self._emit(mark + text, "list_item", "\n", indent=indent)
        else:
            self._emit(text, "paragraph", "\n\n")

    def _pre(self, node: LexborNode) -> None:
        self._flush()
        parts = [
            "\n" if part.tag == "br" else part.text_content or ""
            for part in node.traverse(include_text=True)
            if part.tag in ("br", "-text")
        ]
        text = "".join(parts).rstrip()
        blank = len(text) - len(text.lstrip())
        text = text[text.rfind("\n", 0, blank) + 1 :]  # whole blank lines, not the first indent
        if text:
            self._emit(text, "code", "\n\n")

    def _emit(
        self,
        text: str,
        kind: BlockKind,
        joint: str,
        level: int = 0,
        title: str = "",
        indent: str = "",
    ) -> None:
        """Append a block; rows and items follow their own kind on the next line."""
        if self.blocks:
            joint = joint if self.blocks[-1].kind == kind else "\n\n"
            self._parts.append(joint)
            self.size += len(joint)
        self._parts.append(indent + text)
        start = self.size + len(indent) + len(text) - len(text.lstrip())
        self.size += len(indent) + len(text)
        end = self.size - (len(text) - len(text.rstrip()))
        self.blocks.append(Block(start, end, kind, level, title))


def _holds_data(table: LexborNode) -> bool:
    """Whether a table holds data, rather than arranging a page."""
    if (table.attributes.get("role") or "") in ("presentation", "none"):
        return False
    if table.css_first(_LAYOUT_CONTENT.replace("table,", "table table,")) is not None:
        return False
    cells = table.css("td, th")
    return all(len(cell.text()) <= _LONGEST_CELL for cell in cells)
