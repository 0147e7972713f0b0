"""Passages and windows: exact spans that hold everything, within their limits, found locally."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragembed.chunking import chunk, sentences
from ragembed.chunking.borders import context_hashes, cut
from ragembed.config import ChunkingConfig
from ragembed.readers import parse_blocks
from ragembed.tokenizer import Tokenizer, budget_tokenizer
from ragembed.types import Block, Document, Format, Passage

if TYPE_CHECKING:
    from ragembed.tokenizer import HuggingFaceTokenizer

SMALL = ChunkingConfig(passage=24, window=8, overlap=2)
FORMATS: tuple[Format, ...] = ("text", "markdown", "rst", "code")
WORDS = (
    "the of a to river harbour weevil attic copper saltpetre lantern orchard granite whistle "
    "ledger timber anchor meadow cellar thunder marble compass velvet sparrow cinder hollow"
).split()


def cut_up(
    text: str, tokenizer: Tokenizer, config: ChunkingConfig, format: Format = "text"
) -> tuple[Passage, ...]:
    blocks = parse_blocks(text, format)
    return chunk(Document(id="d", text=text, format=format, blocks=blocks), tokenizer, config)


def check_invariants(
    text: str, passages: tuple[Passage, ...], tokenizer: Tokenizer, config: ChunkingConfig
) -> None:
    in_passages = np.zeros(len(text), dtype=np.int64)
    in_windows = np.zeros(len(text), dtype=np.bool_)
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert passage.text.strip() == passage.text != ""
        assert passage.tokens <= config.passage
        in_passages[passage.start : passage.end] += 1
        assert passage.windows
        for window in passage.windows:
            assert window.text == text[window.start : window.end]
            assert passage.start <= window.start < window.end <= passage.end
            assert len(window.text) <= config.window * config.characters_per_token
            assert tokenizer.count(window.text) <= config.window
            in_windows[window.start : window.end] = True
    assert [p.start for p in passages] == sorted(p.start for p in passages)
    for offset, character in enumerate(text):
        if not character.isspace():
            assert in_passages[offset] == 1, (offset, character)
            assert in_windows[offset], (offset, character)


@pytest.mark.parametrize("format", FORMATS)
@given(text=st.text(max_size=400))
@example(text="a" * 700)
@example(text="中文没有空格" * 60)
@example(text="ก" * 300)
@example(text="word " * 200)
@example(text="x" + " " * 900 + "y")
@example(text="👩\u200d👩\u200d👧" * 60)
@example(text="e" + "\u0301" * 300)
@example(text="# a\n\n## b\n\ntext\n\n" * 20)
@example(text="\u200b" * 90 + "\x01" * 90)
@settings(deadline=None, max_examples=60)
def test_any_text_is_held_whole(wordpiece: HuggingFaceTokenizer, format: Format, text: str) -> None:
    passages = cut_up(text, wordpiece, SMALL, format)
    check_invariants(text, passages, wordpiece, SMALL)


@given(text=st.text(alphabet=st.sampled_from("ab.!? \n,中。é"), max_size=600))
@settings(deadline=None, max_examples=60)
def test_any_tokenizer_will_do(text: str) -> None:
    tokenizer = budget_tokenizer()
    check_invariants(text, cut_up(text, tokenizer, SMALL), tokenizer, SMALL)


@pytest.mark.parametrize(
    "text",
    [
        "f0a1" * 25_000,
        "\t" * 50_000 + "x",
        "." * 100_000,
        "a." * 50_000,
        "a\n" * 50_000,
        "汉" * 50_000,
        "=" * 100_000,
    ],
    ids=["hex", "tabs", "dots", "a-dot", "lines", "han", "rule"],
)
def test_monotonous_texts_are_quick_and_within_limits(
    wordpiece: HuggingFaceTokenizer, text: str
) -> None:
    config = ChunkingConfig()
    passages = cut_up(text, wordpiece, config)
    check_invariants(text, passages, wordpiece, config)
    assert len(passages) <= 4 + 5 * len(text) / config.passage


def test_a_paragraph_that_fits_is_never_cut(wordpiece: HuggingFaceTokenizer) -> None:
    rng = random.Random(3)
    paragraphs = [" ".join(rng.choices(WORDS, k=rng.randint(5, 120))) + "." for _ in range(60)]
    passages = cut_up("\n\n".join(paragraphs), wordpiece, ChunkingConfig())
    assert len(passages) > 5
    assert [p for passage in passages for p in passage.text.split("\n\n")] == paragraphs


def test_passages_stay_under_one_heading_path(wordpiece: HuggingFaceTokenizer) -> None:
    text = "# Beetles\n\n## Weevils\n\nThe zyzzyva sleeps.\n\n## Ladybirds\n\nRed.\n\n# Ships\n\nSail.\n"
    passages = cut_up(text, wordpiece, ChunkingConfig(), "markdown")
    assert [(p.heading, p.text.split("\n")[0]) for p in passages] == [
        (("Beetles", "Weevils"), "# Beetles"),
        (("Beetles", "Ladybirds"), "## Ladybirds"),
        (("Ships",), "# Ships"),
    ]


def test_windows_slide_by_window_minus_overlap(wordpiece: HuggingFaceTokenizer) -> None:
    words = [WORDS[n % len(WORDS)] for n in range(300)]
    text = " ".join(word for word in words if wordpiece.count(word) == 1)
    config = ChunkingConfig()
    (passage,) = cut_up(text, wordpiece, config)
    starts = [wordpiece.count(text[: window.start]) for window in passage.windows]
    assert starts == [96 * n for n in range(len(starts))]
    assert all(wordpiece.count(w.text) == 128 for w in passage.windows[:-1])


def test_unknown_tokens_are_counted(wordpiece: HuggingFaceTokenizer) -> None:
    (passage,) = cut_up("known words ☃ and 𓀀 signs", wordpiece, ChunkingConfig())
    assert passage.unknown == 2
    assert passage.tokens == wordpiece.count(passage.text)


def test_a_long_unknown_run_is_not_one_token(wordpiece: HuggingFaceTokenizer) -> None:
    text = "f0a1b2" * 1700
    passages = cut_up(text, wordpiece, ChunkingConfig())
    assert sum(len(p.windows) for p in passages) >= len(text) / 1280


def paragraphs(seed: int, characters: int) -> list[str]:
    rng = random.Random(seed)
    made, size = [], 0
    while size < characters:
        count = rng.randint(2, 7)
        lines = [
            " ".join(rng.choices(WORDS, k=rng.randint(6, 22))).capitalize() + "."
            for _ in range(count)
        ]
        made.append(" ".join(lines))
        size += len(made[-1])
    return made


@pytest.mark.parametrize("joint", ["\n\n", "\n", " "], ids=["blank lines", "lines", "one line"])
def test_an_edit_moves_only_its_neighbourhood(wordpiece: HuggingFaceTokenizer, joint: str) -> None:
    """The short form of benchmarks/edit_locality.py: at most 12 windows are new."""
    config = ChunkingConfig()
    text = joint.join(paragraphs(7, 150_000))
    before = {w.text for p in cut_up(text, wordpiece, config) for w in p.windows}
    rng = random.Random(11)
    places = [match.end() for match in re.finditer(r"\s", text)]
    for _ in range(8):
        at = rng.choice(places[len(places) // 4 : 3 * len(places) // 4])
        line = " ".join(rng.choices(WORDS, k=12)).capitalize() + ".\n"
        after = cut_up(text[:at] + line + text[at:], wordpiece, config)
        new = [w for p in after for w in p.windows if w.text not in before]
        assert 1 <= len(new) <= 12


def test_the_same_text_is_cut_the_same_wherever_it_stands(wordpiece: HuggingFaceTokenizer) -> None:
    body = "\n\n".join(paragraphs(1, 40_000))
    front = "\n\n".join(paragraphs(2, 20_000))
    alone = [p.text for p in cut_up(body, wordpiece, ChunkingConfig())]
    behind = {p.text for p in cut_up(f"{front}\n\n{body}", wordpiece, ChunkingConfig())}
    assert len(alone) > 20
    assert sum(text not in behind for text in alone) <= 3


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2), st.integers(0, 5)), min_size=1),
    st.integers(9, 40),
)
def test_cut_covers_within_the_limit(atoms: list[tuple[int, int, int]], limit: int) -> None:
    sizes, classes, hashes = (np.array(column) for column in zip(*atoms, strict=True))
    pieces = cut(sizes, classes, hashes.astype(np.uint64), limit)
    assert [n for first, last in pieces for n in range(first, last)] == list(range(len(sizes)))
    for first, last in pieces:
        assert sizes[first:last].sum() <= limit


def test_a_stronger_class_is_cut_first() -> None:
    sizes = np.full(6, 4)
    classes = np.array([0, 1, 1, 0, 1, 1])
    hashes = np.array([9, 1, 2, 8, 3, 4], dtype=np.uint64) << np.uint64(32)
    assert cut(sizes, classes, hashes, 12) == [(0, 3), (3, 6)]


def test_hashes_look_at_what_follows_only() -> None:
    points = np.arange(200, dtype=np.uint32)
    changed = points.copy()
    changed[:100] = 7
    starts = np.array([100, 150])
    assert np.array_equal(context_hashes(points, starts), context_hashes(changed, starts))
    changed[110] = 7
    assert context_hashes(points, starts)[0] != context_hashes(changed, starts)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", ["One.", "Two."]),
        (
            "He met Dr. No at 3.5 p.m. sharp. Then left!",
            ["He met Dr. No at 3.5 p.m. sharp.", "Then left!"],
        ),
        ("See e.g. Smith et al. for more. Done.", ["See e.g. Smith et al. for more.", "Done."]),
        ('"Stop!" he said. "Why?" She left.', ['"Stop!" he said.', '"Why?"', "She left."]),
        ("他走了。真的吗？是的！", ["他走了。", "真的吗？", "是的！"]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("no end here", ["no end here"]),
        ("   ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in sentences(text)] == expected


@given(st.text(max_size=300))
def test_sentences_cover_any_text(text: str) -> None:
    spans = sentences(text)
    held: set[int] = set()
    for start, end in spans:
        assert start < end
        assert not held or start > max(held)
        held |= set(range(start, end))
    assert all(text[n].isspace() for n in set(range(len(text))) - held)


def test_blocks_are_what_chunking_builds_on(wordpiece: HuggingFaceTokenizer) -> None:
    text = "one two three"
    document = Document(id="d", text=text, blocks=(Block(0, 3, "paragraph"), Block(4, 13, "code")))
    (passage,) = chunk(document, wordpiece, ChunkingConfig())
    assert passage.text == text
    assert chunk(Document(id="e", text=""), wordpiece, ChunkingConfig()) == ()
