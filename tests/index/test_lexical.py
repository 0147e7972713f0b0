"""The lexical leg: BM25 over terms, a marker that moves with each commit, and damage that shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ragembed.index.analysis import query_terms, terms
from ragembed.index.lexical import (
    DIRECTORY,
    MAX_TERMS,
    LexicalFailure,
    LexicalIndex,
    PassageTerms,
    damaged_files,
)

TEXTS = {
    1: "The harbour master keeps the harbour log.",
    2: "A log of the harbour.",
    3: "Die Kündigungen der Mietverträge sind nicht in der Schublade.",
    4: "max_tokens bounds the context; see getValueOf.",
    5: "中文检索系统",
}
GERMAN = {3}


def passage(id: int, text: str, title: str = "") -> PassageTerms:
    language = "german" if id in GERMAN else "english"
    return PassageTerms(id, 100 + id, terms(text, language), terms(title, language))


def fill(index: LexicalIndex) -> LexicalIndex:
    index.apply(1, 5, [passage(id, text) for id, text in TEXTS.items()], ())
    return index


@pytest.fixture
def lexical() -> LexicalIndex:
    return fill(LexicalIndex.in_memory())


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    index = fill(LexicalIndex.create(tmp_path))
    index.apply(2, 6, [passage(6, "harbour again")], [2])
    index.close()
    return tmp_path


def ask(index: LexicalIndex, query: str, k: int = 10) -> list[int]:
    return [id for id, _ in index.snapshot.search(query_terms(query, ["english", "german"]), k)]


def test_words_find_passages(lexical: LexicalIndex) -> None:
    assert ask(lexical, "harbours") == [1, 2]
    assert ask(lexical, "Kündigung") == [3]
    assert ask(lexical, "tokens") == ask(lexical, "max_tokens") == ask(lexical, "MAX") == [4]
    assert ask(lexical, "value") == [4]
    assert ask(lexical, "检索") == ask(lexical, "检") == [5]
    assert ask(lexical, "nowhere") == ask(lexical, "") == []
    assert len(ask(lexical, "harbour", k=1)) == 1


def test_search_and_score_give_the_same_figures(lexical: LexicalIndex) -> None:
    wanted = query_terms("harbour log of the context", ["english"])
    found = dict(lexical.snapshot.search(wanted, 10))
    assert len(found) == 4 - 1
    assert lexical.snapshot.score(wanted, list(TEXTS)) == pytest.approx(found)
    assert lexical.snapshot.score(wanted, [1, 999]) == pytest.approx({1: found[1]})
    assert lexical.snapshot.score(wanted, []) == lexical.snapshot.score([], [1]) == {}
    assert [score for _, score in lexical.snapshot.search(wanted, 10)] == sorted(found.values())[
        ::-1
    ]


def test_equal_scores_are_ordered_by_id() -> None:
    index = LexicalIndex.in_memory()
    index.apply(1, 9, [passage(id, "same words") for id in (9, 4, 7)], ())
    assert ask(index, "words") == [4, 7, 9]


def test_titles_count_less_than_text() -> None:
    index = LexicalIndex.in_memory()
    filler = "other words stand here"
    index.apply(
        1,
        3,
        [passage(1, filler, "harbour"), passage(2, f"harbour {filler}"), passage(3, filler)],
        (),
    )
    assert ask(index, "harbour") == [2, 1]
    assert index.snapshot.document_frequency("harbour") == 1


def test_removed_passages_are_gone(lexical: LexicalIndex) -> None:
    lexical.apply(2, 6, [passage(6, "a new harbour")], [1, 3])
    assert sorted(ask(lexical, "harbour")) == [2, 6]
    assert ask(lexical, "Kündigung") == []
    assert lexical.snapshot.passages == 4
    assert lexical.snapshot.score(query_terms("harbour", ["english"]), [1, 2]).keys() == {2}


def test_passages_are_removed_by_a_later_process_too(on_disk: Path) -> None:
    index = LexicalIndex.open(on_disk)
    index.apply(3, 6, (), [1])
    assert ask(index, "harbour") == [6]
    index.close()
    assert LexicalIndex.open(on_disk).snapshot.passages == 4


def test_the_marker_moves_with_the_commit(tmp_path: Path) -> None:
    writer = LexicalIndex.create(tmp_path)
    empty = writer.snapshot
    assert (empty.generation, empty.last_passage, empty.passages) == (0, 0, 0)
    fill(writer)
    assert empty.passages == 0  # what was taken stays as it was
    reader = LexicalIndex.open(tmp_path)
    before = reader.snapshot
    assert (before.generation, before.last_passage, before.passages) == (1, 5, 5)
    for generation in range(2, 6):
        writer.apply(generation, 5, (), ())
        assert (writer.snapshot.generation, writer.snapshot.passages) == (generation, 5)
    assert reader.snapshot.generation == 1
    after = reader.reload()
    assert (after.generation, after.last_passage, after.passages) == (5, 5, 5)
    assert before.generation == 1
    writer.close()
    assert ask(reader, "harbour") == [1, 2]


@pytest.mark.parametrize(
    "text", ["c++", '"', "AND OR", "\0", "\U0001f600", "中", "ภาษา", "", "((*"]
)
def test_nasty_queries_never_raise(lexical: LexicalIndex, text: str) -> None:
    wanted = query_terms(text, ["english"])
    for id, score in lexical.snapshot.search(wanted, 5):
        assert id in TEXTS and score > 0
    lexical.snapshot.score(wanted, [1, 2])


def test_a_query_of_5000_words_is_cut_not_refused(lexical: LexicalIndex) -> None:
    wanted = ["harbour", *(f"w{n}" for n in range(5000))]
    assert len(wanted) > MAX_TERMS
    assert [id for id, _ in lexical.snapshot.search(wanted, 5)] == [1, 2]


# -- files -----------------------------------------------------------------------------------------


def test_every_damaged_file_is_noticed(
    on_disk: Path, put_bytes: Callable[[Path, bytes], None]
) -> None:
    assert damaged_files(on_disk / DIRECTORY) == []
    checked = 0
    for file in sorted((on_disk / DIRECTORY).iterdir()):
        if file.name.startswith(".") or file.name == "meta.json":
            continue
        good = file.read_bytes()
        for position in {0, len(good) // 2, len(good) - 60, len(good) - 9, len(good) - 1}:
            flipped = bytes([good[position] ^ 0x10])
            put_bytes(file, good[:position] + flipped + good[position + 1 :])
            with pytest.raises(LexicalFailure, match=file.name.split(".")[0]):
                LexicalIndex.open(on_disk)
        put_bytes(file, good[: len(good) // 2])
        with pytest.raises(LexicalFailure):
            LexicalIndex.open(on_disk)
        put_bytes(file, good)
        checked += 1
    assert checked >= 12
    assert sorted(ask(LexicalIndex.open(on_disk), "harbour")) == [1, 6]


def test_every_missing_file_is_noticed(on_disk: Path) -> None:
    path = on_disk / DIRECTORY
    for file in sorted(path.iterdir()):
        if file.name.startswith(".") or file.suffix == ".pos":
            continue
        hidden = file.with_name("hidden")
        file.rename(hidden)
        if file.suffix != ".del":
            assert damaged_files(path), file.name
        with pytest.raises(LexicalFailure):
            LexicalIndex.open(on_disk)
        hidden.rename(file)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"segments": 3}', b'{"segments": [{}]}'])
def test_a_damaged_list_of_segments_is_noticed(on_disk: Path, content: bytes) -> None:
    (on_disk / DIRECTORY / "meta.json").write_bytes(content)
    with pytest.raises(LexicalFailure):
        LexicalIndex.open(on_disk)


def test_no_files_at_all(tmp_path: Path) -> None:
    with pytest.raises(LexicalFailure, match="no lexical files"):
        LexicalIndex.open(tmp_path)


def test_creating_drops_what_was_there(on_disk: Path) -> None:
    (on_disk / "lexical-0").mkdir()
    index = LexicalIndex.create(on_disk)
    assert (index.snapshot.passages, index.snapshot.generation) == (0, 0)
    assert not (on_disk / "lexical-0").exists()
    assert (on_disk / DIRECTORY).stat().st_mode & 0o777 == 0o700
    shutil.rmtree(on_disk / DIRECTORY)
    assert fill(LexicalIndex.create(on_disk)).snapshot.passages == 5
