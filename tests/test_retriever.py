"""Retrieval: fusion, folding, highlights, and the weight that falls with unknown tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

import ragembed
from ragembed import Corpus, Document
from ragembed.config import RetrievalConfig
from ragembed.errors import InvalidInput

DOCUMENTS = [
    Document(id="weevil", text="The zyzzyva is a tropical weevil. It sleeps in the attic all day."),
    Document(
        id="ship", text="A copper-bottomed clipper sails to Valparaíso. Its cargo is saltpetre."
    ),
    Document(id="tea", text="Oolong is half oxidised. Green tea is not oxidised at all."),
    Document(id="zh", text="象鼻虫是一种热带昆虫。它整天在阁楼里睡觉。"),
    Document(
        id="de",
        text="Der Rüsselkäfer ist ein Insekt. Die Käfer schlafen auf dem Dachboden und im Keller.",
    ),
    Document(id="code", text="def max_tokens(value):\n    return getValue(value)\n"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = ragembed.Corpus(tmp_path_factory.mktemp("retriever") / "index")
    corpus.add(DOCUMENTS)
    return corpus


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_every_mode_finds_the_obvious(corpus: Corpus, mode: ragembed.types.Mode) -> None:
    hits = corpus.search("zyzzyva weevil", k=2, mode=mode)
    assert hits[0].path == "weevil"
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_meaning_without_a_common_word(corpus: Corpus) -> None:
    assert corpus.search("an insect taking a nap", k=1)[0].path == "weevil"


def test_scores_say_what_they_are(corpus: Corpus) -> None:
    dense = corpus.search("weevil", k=9, mode="dense")
    assert len(dense) == len(DOCUMENTS)
    assert all(-1 <= (hit.dense or 0) <= 1 and hit.lexical is None for hit in dense)
    lexical = corpus.search("weevil", mode="lexical")
    assert [hit.path for hit in lexical] == ["weevil"]
    assert lexical[0].dense is None and (lexical[0].lexical or 0) > 0
    hybrid = {hit.path: hit for hit in corpus.search("weevil", k=9)}
    assert hybrid["weevil"].lexical == lexical[0].lexical
    for hit in dense:
        assert hybrid[hit.path].dense == pytest.approx(hit.dense, abs=1e-3)


def test_fusion_is_the_documented_formula(corpus: Corpus) -> None:
    hits = corpus.search("weevil attic oolong", k=9)
    top = max(hit.lexical or 0 for hit in hits)
    for hit in hits:
        if hit.path in ("weevil", "ship", "tea"):  # no unknown tokens
            expected = 0.7 * (hit.dense or 0) + 0.3 * (hit.lexical or 0) / top
            assert hit.score == pytest.approx(expected, abs=1e-6)


def test_the_dense_weight_falls_with_unknown_tokens(corpus: Corpus) -> None:
    hits = {hit.path: hit for hit in corpus.search("阁楼里的象鼻虫", k=9)}
    assert next(iter(hits)) == "zh"
    top = max(hit.lexical or 0 for hit in hits.values())
    tokens = corpus.tokenizer().encode(["阁楼里的象鼻虫"])[0]
    share = float(tokens.unknown.mean())
    assert 0 < share <= 1
    ship = hits["ship"]
    weight = 0.7 * (1 - share)
    expected = weight * (ship.dense or 0) + (1 - weight) * (ship.lexical or 0) / top
    assert ship.score == pytest.approx(expected, abs=1e-6)


def test_words_are_found_in_their_own_language(corpus: Corpus) -> None:
    assert corpus.search("schlafende Käfern im Keller", k=1, mode="lexical")[0].path == "de"
    assert corpus.search("max tokens", k=1, mode="lexical")[0].path == "code"
    assert corpus.search("getvalue", k=1, mode="lexical")[0].path == "code"
    assert corpus.search("虫", k=1, mode="lexical")[0].path == "zh"


def test_highlights_are_window_and_sentence(corpus: Corpus) -> None:
    hit = corpus.search("where does it sleep? attic", k=1)[0]
    window, sentence = hit.highlights
    assert hit.text[slice(*window)] == hit.text
    assert hit.text[slice(*sentence)] == "It sleeps in the attic all day."
    assert "attic" in {hit.text[a:b] for a, b in hit.words}


def test_without_a_matching_word_the_model_picks_the_sentence(corpus: Corpus) -> None:
    hit = corpus.search("dozing upstairs beneath rafters", k=1, mode="dense")[0]
    assert hit.path == "weevil"
    assert hit.text[slice(*hit.highlights[1])] == "It sleeps in the attic all day."


def test_equal_texts_are_one_hit(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name in ("a.md", "b/c.md", "d.md"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text("# Beetles\n\nThe zyzzyva sleeps.\n")
    (docs / "e.md").write_text("# Ships\n\nA clipper sails.\n")
    with ragembed.Corpus(tmp_path / "index") as corpus:
        corpus.sync(docs)
        hits = corpus.search("zyzzyva", k=2)
    assert [hit.path for hit in hits] == ["a.md", "e.md"]
    assert [place.path for place in hits[0].also] == ["b/c.md", "d.md"]
    assert hits[0].also[0].lines == (1, 3)


def test_k_beyond_what_there_is(corpus: Corpus) -> None:
    assert len(corpus.search("weevil", k=500)) == len(DOCUMENTS)


def test_one_candidate_is_enough(tmp_path: Path) -> None:
    retrieval = RetrievalConfig(candidates=1)
    with ragembed.Corpus(tmp_path / "index", retrieval=retrieval) as corpus:
        corpus.add(DOCUMENTS)
        assert corpus.search("zyzzyva", k=1)[0].path == "weevil"


@pytest.mark.parametrize(
    ("query", "k", "mode", "message"),
    [
        (" ", 1, "hybrid", "blank"),
        ("x", 0, "hybrid", "k is 0"),
        ("x", 10_001, "hybrid", "k is 10001"),
        ("x", 1, "psychic", "psychic"),
    ],
)
def test_bad_questions(corpus: Corpus, query: str, k: int, mode: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        corpus.search(query, k=k, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "query",
    ["?!", "\ud800", "AND OR NOT", '"unclosed', "c++ (", "weevil " * 900, "\x00", "👩\u200d🚀"],
)
def test_strange_questions_are_answered(corpus: Corpus, query: str) -> None:
    assert len(corpus.search(query, k=3)) == 3


def test_an_empty_index_has_no_hits(tmp_path: Path) -> None:
    with ragembed.Corpus(tmp_path / "index") as corpus:
        assert len(corpus.search("anything")) == 0
        context = corpus.context("anything")
        assert (context.text, context.omitted) == ("", ())
