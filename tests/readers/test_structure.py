"""The promises of `parse_blocks`, and what each format's parser finds."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragembed.readers import parse_blocks
from ragembed.readers.lines import split_lines
from ragembed.readers.titles import markdown_title, rst_title
from ragembed.types import Block, Format

FORMATS: tuple[Format, ...] = ("text", "code", "markdown", "rst", "html", "pdf")

MARKUP = st.lists(
    st.sampled_from(
        "# |## x|#|```|~~~|````|- |* |+ |1. |2) |> |    |\t|  |\n|\n\n|\r\n|\r|---|===|***|<!--|"
        "-->|<div>|</div>|<pre>|</pre>|===  ===|+--+--+|+==+|::|.. note:: x|.. code::|.. |:a: b|"
        '>>> x|* x|#. y|(a) z|text|word two|!!! note|=== "x"|[a](b)|`|~|^|\x0b|\u2028|\x1c|\u00a0|'
        "\x00|\ud800|文字|=|-|--|x\n=|é".split("|")
        + ["|", "||", "| a | b |", "|-|-|", "\n|---|---|"]
    ),
    max_size=40,
).map("".join)


def assert_sound(text: str, blocks: tuple[Block, ...]) -> None:
    at = 0
    for block in blocks:
        assert block.start >= at
        assert block.end > block.start
        assert not text[block.start].isspace()
        assert not text[block.end - 1].isspace()
        assert not text[at : block.start].strip()
        assert (block.level > 0) == (block.kind == "heading")
        at = block.end
    assert not text[at:].strip()


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=300, deadline=None)
@given(text=st.one_of(MARKUP, st.text(st.characters(codec=None), max_size=80)))
def test_blocks_are_ordered_and_complete(format: Format, text: str) -> None:
    assert_sound(text, parse_blocks(text, format))


@settings(max_examples=100, deadline=None)
@given(text=MARKUP)
def test_line_ends_do_not_matter(text: str) -> None:
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    for format in FORMATS:
        expected = [(b.kind, b.level, b.title) for b in parse_blocks(plain, format)]
        for end in ("\r\n", "\r"):
            blocks = parse_blocks(plain.replace("\n", end), format)
            assert [(b.kind, b.level, b.title) for b in blocks] == expected


MILLION = 1_000_000
LINES = 40_000
HOSTILE = {
    **{repr(c): c * MILLION for c in "#`|-[~*=_>+<:.\n x("},
    "lines of #": "#\n" * LINES,
    "lines of |-": "|-\n" * LINES,
    "open comments": "<!--\n\n" * LINES,
    "open pre": "<pre\n\n" * LINES,
    "open fences in items": "- a\n\n  ```\n" * LINES,
    "open tables": "== ==\n\n" * LINES,
    "tables without rows": "|a|\n|-|\n" * LINES,
    "underlined": "a\n=\n" * LINES,
    "deep list": "".join(" " * i + "- a\n" for i in range(1400)),
    "links": "# " + "[a](" * (MILLION // 4),
    "tabs": ("\t" * 1000 + "a\n") * 1000,
    "blanks": " \n" * (MILLION // 2),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_input_takes_linear_time(name: str) -> None:
    text = HOSTILE[name]
    for format in ("text", "code", "markdown", "rst"):
        begin = time.perf_counter()
        blocks = parse_blocks(text, format)
        assert time.perf_counter() - begin < 10, format  # quadratic time is minutes
        assert bool(blocks) == bool(text.strip())


def outline(text: str, format: Format) -> list[tuple[str, str]]:
    return [(b.kind, text[b.start : b.end]) for b in parse_blocks(text, format)]


def test_only_three_line_ends_count() -> None:
    assert [line.content for line in split_lines("a\x0bb\x0cc\u2028d\x85e\rf\r\n\r\ng")] == [
        "a\x0bb\x0cc\u2028d\x85e",
        "f",
        "g",
    ]


def test_markdown_headings() -> None:
    text = "# One #\n\nTwo\nmore\n===\nThree\n---\n####### no\n\n#no\n\n## `a_b` *c*\ntext\n###\n"
    assert [
        (b.kind, b.level, b.title) for b in parse_blocks(text, "markdown") if b.kind == "heading"
    ] == [
        ("heading", 1, "One"),
        ("heading", 1, "Two more"),
        ("heading", 2, "Three"),
        ("heading", 2, "a_b c"),
        ("heading", 3, ""),
    ]


def test_markdown_fences() -> None:
    text = "````md\n```\n# no\n```\n````\n\n~~~\n```\n\n- x\n~~~\nafter\n\n```py\n# open\n\nend"
    assert outline(text, "markdown") == [
        ("code", "````md\n```\n# no\n```\n````"),
        ("code", "~~~\n```\n\n- x\n~~~"),
        ("paragraph", "after"),
        ("code", "```py\n# open\n\nend"),
    ]


def test_markdown_backticks_in_info_are_no_fence() -> None:
    assert outline("```a``` b\n\n# h", "markdown")[0] == ("paragraph", "```a``` b")


def test_markdown_lists() -> None:
    text = (
        "- a\n  more\n\n  still a\n  - b\n    b2\n- c\n\n  ```\n  - code\n  ```\n\n  rest of c\n"
        "\n1. d\n2. e\n\nout"
    )
    assert outline(text, "markdown") == [
        ("list_item", "- a\n  more\n\n  still a"),
        ("list_item", "- b\n    b2"),
        ("list_item", "- c"),
        ("code", "```\n  - code\n  ```"),
        ("list_item", "rest of c"),
        ("list_item", "1. d"),
        ("list_item", "2. e"),
        ("paragraph", "out"),
    ]


def test_markdown_tables() -> None:
    text = "intro\n| a | b |\n|---|:-:|\n| 1 | 2 |\n| 3 |\n\na | b\n--- | ---\n\nx | y\n--"
    assert outline(text, "markdown") == [
        ("paragraph", "intro"),
        ("table_row", "| a | b |\n|---|:-:|"),
        ("table_row", "| 1 | 2 |"),
        ("table_row", "| 3 |"),
        ("table_row", "a | b\n--- | ---"),
        ("heading", "x | y\n--"),
    ]
    assert outline("a | b | c\n|---|---|\n", "markdown")[0][0] == "paragraph"


def test_markdown_front_matter_html_quotes_and_code() -> None:
    text = (
        "---\ntitle: x\n\n# y\n---\n<!-- # a\n\n# b -->\n\n<div>\n# c\n</div>\n\n"
        "> q\nlazy\n> # d\n\n    code\n\n    more\n\n***\n"
    )
    assert [kind for kind, _ in outline(text, "markdown")] == [
        *["paragraph"] * 4,
        "code",
        "paragraph",
    ]
    assert outline("+++\na = 1\n+++\n# h", "markdown")[0] == ("paragraph", "+++\na = 1\n+++")


def test_markdown_unclosed_comment_does_not_swallow_the_rest() -> None:
    assert outline("<!-- a\n\n# b", "markdown")[1] == ("heading", "# b")


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("Plain ##", "Plain"),
        ("C#", "C#"),
        ("**Bold** and _it_ snake_case", "Bold and it snake_case"),
        ("[![i](a.png) text](b(c).md) x", "i text x"),
        ("`__init__` [`a_b`][ref]", "__init__ a_b"),
        ("``a ` b``", "a ` b"),
        (r"1\. a \* b &amp; c", "1. a * b & c"),
        ("First { #first .x }", "First"),
        ("A <a id='x'></a>B", "A B"),
        ("2 * 3", "2 * 3"),
    ],
)
def test_markdown_titles(source: str, title: str) -> None:
    assert markdown_title(source) == title


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("The ``x_`` of :mod:`os.path`", "The x_ of os.path"),
        ("`A link <http://x>`_ and *em* **b**", "A link and em b"),
        ("def f(*args, **kw)", "def f(*args, **kw)"),
    ],
)
def test_rst_titles(source: str, title: str) -> None:
    assert rst_title(source) == title


def test_rst_sections_take_levels_in_order_of_appearance() -> None:
    text = "=====\nTitle\n=====\n\nSub\n---\n\ntext\n\nOther\n~~~~~\n\nBack\n----\n\n----\n\na\n-\n"
    assert [(b.level, b.title) for b in parse_blocks(text, "rst") if b.level] == [
        (1, "Title"),
        (2, "Sub"),
        (3, "Other"),
        (2, "Back"),
        (2, "a"),
    ]


def test_rst_bodies() -> None:
    text = (
        ":Author: me\n:Date: now\n\nExample::\n\n  code\n\n    more\n\n.. code-block:: python\n\n"
        "   x = 1\n\n   y\n\n.. note:: careful\n\n   * item\n     more\n\n     again\n   * two\n\n"
        "term\n    meaning\n\n.. a comment\n\n(1) first\n(2) second\n\n>>> 1 + 1\n2\n"
    )
    assert outline(text, "rst") == [
        ("paragraph", ":Author: me\n:Date: now"),
        ("paragraph", "Example::"),
        ("code", "code\n\n    more"),
        ("code", ".. code-block:: python\n\n   x = 1\n\n   y"),
        ("paragraph", ".. note:: careful"),
        ("list_item", "* item\n     more\n\n     again"),
        ("list_item", "* two"),
        ("list_item", "term\n    meaning"),
        ("paragraph", ".. a comment"),
        ("list_item", "(1) first"),
        ("list_item", "(2) second"),
        ("code", ">>> 1 + 1\n2"),
    ]


def test_rst_tables() -> None:
    simple = "===  ===\nA    B\n===  ===\n1    2\n     more\n3    4\n===  ==="
    assert outline(simple + "\n\nafter", "rst") == [
        ("table_row", "===  ===\nA    B\n===  ==="),
        ("table_row", "1    2\n     more"),
        ("table_row", "3    4\n===  ==="),
        ("paragraph", "after"),
    ]
    grid = "+---+---+\n| A | B |\n+===+===+\n| 1 | 2 |\n|   | x |\n+---+---+\n| 3 | 4 |\n+---+---+"
    assert outline(grid, "rst") == [
        ("table_row", "+---+---+\n| A | B |\n+===+===+"),
        ("table_row", "| 1 | 2 |\n|   | x |\n+---+---+"),
        ("table_row", "| 3 | 4 |\n+---+---+"),
    ]
