"""Structure of plain text and source code: blocks between blank lines."""

from __future__ import annotations

from ragembed.readers.lines import BlockBuilder, run_end, split_lines
from ragembed.types import Block, BlockKind


def _runs(text: str, kind: BlockKind) -> tuple[Block, ...]:
    lines = split_lines(text)
    builder = BlockBuilder(lines)
    at = 0
    while at < len(lines):
        at = builder.add(kind, run_end(lines, at))
    return builder.blocks()


def parse_text(text: str) -> tuple[Block, ...]:
    """Paragraphs: runs of lines between blank lines.

    >>> [text.kind for text in parse_text("one\\ntwo\\n\\nthree")]
    ['paragraph', 'paragraph']
    """
    return _runs(text, "paragraph")


def parse_code(text: str) -> tuple[Block, ...]:
    """Source code: runs of lines between blank lines, of kind "code"."""
    return _runs(text, "code")
