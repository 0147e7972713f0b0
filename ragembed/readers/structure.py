"""The structure of a decoded text: one parser per format, one set of promises.

For every format the blocks are ordered, do not overlap, start and end on a character that is not
blank, and together hold every such character. No input raises, and time is linear.
"""

from __future__ import annotations

from ragembed.readers.markdown import parse_markdown
from ragembed.readers.plain import parse_code, parse_text
from ragembed.readers.rst import parse_rst
from ragembed.types import Block, Format


def parse_blocks(text: str, format: Format) -> tuple[Block, ...]:
    """The blocks of `text`; html and pdf mean text that was extracted already, read as plain.

    >>> [(block.kind, block.title) for block in parse_blocks("# Title\\n\\nText", "markdown")]
    [('heading', 'Title'), ('paragraph', '')]
    """
    if format == "markdown":
        return parse_markdown(text)
    if format == "rst":
        return parse_rst(text)
    if format == "code":
        return parse_code(text)
    return parse_text(text)
