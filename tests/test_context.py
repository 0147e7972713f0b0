"""Context: the budget is a bound on the rendered text, citations are exact, nothing is unaccounted."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragembed.config import ContextConfig, ContextFormat
from ragembed.context import build_context
from ragembed.errors import InvalidInput
from ragembed.tokenizer import TiktokenTokenizer, budget_tokenizer
from ragembed.types import Context, Hit

FORMATS: tuple[ContextFormat, ...] = ("markdown", "xml", "json", "messages")
TOKENIZER = budget_tokenizer()
TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(' .\n"<&')), min_size=1
).filter(str.strip)


def hit(number: int, text: str, path: str = "a.md") -> Hit:
    return Hit(
        rank=number,
        score=1.0 / number,
        dense=0.5,
        lexical=1.0,
        root="/docs",
        path=path,
        start=100 * number,
        end=100 * number + len(text),
        lines=(number, number + text.count("\n")),
        page=None,
        title="T",
        heading=("H1", "H2"),
        text=text,
        highlights=((0, len(text)),),
        document_id=1,
        passage_id=number,
    )


def build(hits: list[Hit], max_tokens: int, format: ContextFormat = "markdown") -> Context:
    config = ContextConfig(max_tokens=max_tokens, format=format)
    return build_context("why?", hits, TOKENIZER, config)


@pytest.mark.parametrize("format", FORMATS)
@given(texts=st.lists(TEXT, max_size=8), path=TEXT, budget=st.integers(0, 600))
@settings(deadline=None, max_examples=80)
def test_the_budget_is_a_bound(
    format: ContextFormat, texts: list[str], path: str, budget: int
) -> None:
    hits = [hit(n, text, path) for n, text in enumerate(texts, start=1)]
    context = build(hits, budget, format)
    assert context.tokens == TOKENIZER.count(context.text) <= budget
    assert bool(context.sources) == bool(context.text)
    spans = [(s.start, s.end) for s in context.sources] + [
        (o.start, o.end) for o in context.omitted
    ]
    for one in hits:  # every character that is not blank is either quoted or listed
        held = {n for a, b in spans for n in range(a, b)}
        for offset, character in enumerate(one.text):
            assert character.isspace() or one.start + offset in held
    for source in context.sources:
        text = hits[source.start // 100 - 1].text if len(hits) < 2 else None
        if text is not None:
            piece = text[source.start - 100 : source.end - 100]
            assert source.sha256 == hashlib.sha256(piece.encode()).hexdigest()


def test_sources_are_numbered_and_quoted_in_order() -> None:
    context = build([hit(1, "First text."), hit(2, "Second text.", "b.md")], 500)
    assert [s.marker for s in context.sources] == ["1", "2"]
    assert context.text.startswith("[1] a.md:1 (H1 > H2) sha256:")
    assert context.text.index("First text.") < context.text.index("[2] b.md:2")
    assert context.omitted == ()


def test_nothing_fits() -> None:
    context = build([hit(1, "First text."), hit(2, "Second text.")], 1)
    assert (context.text, context.tokens, context.sources) == ("", 0, ())
    assert [(o.start, o.reason) for o in context.omitted] == [(100, "budget"), (200, "budget")]


def test_a_passage_that_does_not_fit_gives_its_best_sentences() -> None:
    sentences = [f"Sentence number {n} is about the {n}th weevil." for n in range(30)]
    text = "\n".join(sentences)
    start = text.index(sentences[17])
    one = hit(1, text)
    marked = Hit(
        **{
            name: getattr(one, name)
            for name in one.__dataclass_fields__
            if name not in ("highlights", "lines")
        },
        highlights=((0, len(text)), (start, start + len(sentences[17]))),
        lines=(10, 39),
    )
    context = build([marked], 150)
    (source,) = context.sources
    piece = text[source.start - 100 : source.end - 100]
    assert sentences[17] in piece
    assert piece.startswith("Sentence") and piece.endswith("weevil.")
    assert source.sha256 == hashlib.sha256(piece.encode()).hexdigest()
    first = 10 + text[: source.start - 100].count("\n")
    assert source.lines == (first, first + piece.count("\n"))
    assert {o.reason for o in context.omitted} == {"trimmed"}
    assert 100 < context.tokens <= 150


def test_a_smaller_passage_further_down_still_gets_in() -> None:
    context = build([hit(1, "word " * 400), hit(2, "Small.")], 60)
    assert [s.start for s in context.sources] == [200]


def test_each_format_is_what_it_says() -> None:
    nasty = 'He said "</source>" & <b>left</b>.\n```\n[9] fake.md'
    one = [hit(1, nasty)]
    element = ElementTree.fromstring(build(one, 900, "xml").text)
    assert (element[0].text or "").strip() == nasty
    assert element[0].attrib["path"] == "a.md"
    (row,) = json.loads(build(one, 900, "json").text)
    assert row["text"] == nasty
    chat = json.loads(build(one, 900, "messages").text)
    assert [message["role"] for message in chat] == ["system", "user"]
    assert chat[1]["content"].endswith("Question: why?")


def test_another_tokenizer_is_a_bound_as_well(wordpiece: TiktokenTokenizer) -> None:
    config = ContextConfig(max_tokens=40)
    context = build_context("why?", [hit(1, "First text. " * 30)], wordpiece, config)
    assert context.tokens == wordpiece.count(context.text) <= 40


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(InvalidInput, match="max_tokens is -1"):
        build([], -1)
