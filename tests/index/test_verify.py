"""Damage: what is not what was written is found by verify, and is never served."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragembed import Corpus, Document
from ragembed.errors import IndexNotFound, NotAnIndex, RagembedError
from ragembed.index.lexical import DIRECTORY
from ragembed.index.verify import verify

Sql = Callable[..., list[Any]]
LONG = " ".join(f"Sentence {n} tells of thing{n} and of other{n}." for n in range(120))


@pytest.fixture
def long(filled: Corpus) -> Corpus:
    """With a document of several passages and windows."""
    filled.add([Document(id="long", text=LONG, metadata={"a": 1})])
    return filled


def test_a_sound_index_has_no_problems(long: Corpus) -> None:
    assert long.verify().ok
    assert long.verify().problems == ()
    with long:
        assert max(document.passages for document in long.documents()) > 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE passage SET text = 'A aardvark lives in burrow abcdefgh.' WHERE id = 1",
        "UPDATE passage SET text = text || ' aardvark' WHERE id = 1",
        "UPDATE passage SET start = start + 1, end = end + 1 WHERE id = 1",
        "UPDATE passage SET end = end - 1 WHERE id = 1",
        "UPDATE passage SET crc = crc + 1 WHERE id = 1",
        "UPDATE passage SET document_id = 2 WHERE id = 1",
        "UPDATE passage SET text = CAST(x'41ff42' AS TEXT) WHERE id = 1",
        "UPDATE passage SET heading = 'no JSON' WHERE id = 1",
        "UPDATE passage SET heading = '[\"A heading that is not there\"]' WHERE id = 1",
    ],
)
def test_a_damaged_passage_is_named_and_never_served(
    filled: Corpus, sql: Sql, open_corpus: Callable[..., Corpus], statement: str
) -> None:
    sql(statement)
    problems = filled.verify().problems
    assert problems and any("passage 1 " in problem.where for problem in problems)
    for corpus in (filled, open_corpus()):
        for mode in ("lexical", "dense", "hybrid"):
            hits = corpus.search("aardvark burrow", k=50, mode=mode)  # type: ignore[arg-type]
            assert 1 not in [hit.passage_id for hit in hits]
            assert len(hits) == 5
        assert "aardvark" not in corpus.context("aardvark").text


@pytest.mark.parametrize(
    "data",
    [
        np.full(16, np.nan, "<f2").tobytes(),
        np.eye(1, 16, 3, dtype="<f2").tobytes(),
        np.eye(1, 15, dtype="<f2").tobytes(),
        b"\0" * 7,
        b"",
    ],
    ids=["nan", "another", "short", "odd", "empty"],
)
def test_a_damaged_vector_is_named_and_never_served(
    filled: Corpus, sql: Sql, directory: Path, open_corpus: Callable[..., Corpus], data: bytes
) -> None:
    sql("UPDATE vector SET data = ? WHERE id = 1", data)
    assert [(p.kind, p.where) for p in filled.verify().problems] == [("checksum", "vector 1")]
    for file in directory.glob("vectors-*"):
        file.unlink()
    reader = open_corpus()
    dense = reader.search("aardvark", k=50, mode="dense")
    assert {hit.path for hit in dense} == {
        "badger", "capybara", "dormouse", "echidna", "fossa"
    }  # fmt: skip
    # The words still find the passage; the vector's say counts for nothing.
    hit = next(h for h in reader.search("aardvark", k=50) if h.path == "aardvark")
    assert hit.dense is None
    assert all(hit.score == hit.score for hit in reader.search("aardvark burrow", k=50))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE passage SET heading = 'no JSON' WHERE id = 1",
        "UPDATE passage SET heading = '7' WHERE id = 1",
        "UPDATE passage SET text = CAST(x'41ff42' AS TEXT) WHERE id = 1",
        "UPDATE document SET language = 'eNglish' WHERE id = 1",
        "UPDATE document SET metadata = 'no JSON' WHERE id = 1",
    ],
)
def test_a_damaged_row_does_not_stop_the_rest(
    filled: Corpus, sql: Sql, directory: Path, open_corpus: Callable[..., Corpus], statement: str
) -> None:
    """Nor the lexical files from being built again, nor the next writer."""
    sql(statement)
    shutil.rmtree(directory / DIRECTORY)
    corpus = open_corpus()
    assert {hit.path for hit in corpus.search("burrow", k=50)} >= {"badger", "fossa"}
    corpus.add([Document(id="gnu", text="A gnu has no burrow.")])
    assert corpus.search("gnu", mode="lexical")[0].path == "gnu"
    corpus.delete(["aardvark"])
    assert corpus.verify().ok


def test_the_remedy_for_a_damaged_vector_works(
    filled: Corpus, sql: Sql, kinds: Callable[[Corpus], list[str]]
) -> None:
    sql("UPDATE vector SET data = zeroblob(32) WHERE id = 1")
    filled.delete(["aardvark"])
    filled.add([Document(id="aardvark", text="A aardvark lives in burrow aardvark.")])
    assert kinds(filled) == []
    assert filled.search("A aardvark lives in burrow aardvark.", mode="dense")[0].path == "aardvark"


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM window WHERE passage_id = 2", "window"),
        ("DELETE FROM window WHERE passage_id = 7 AND position = 1", "count"),
        ("UPDATE window SET end = end + 1 WHERE passage_id = 2", "window"),
        ("UPDATE window SET start = start + 1 WHERE passage_id = 2", "window"),
        ("UPDATE window SET vector_id = 3 WHERE passage_id = 2", "window"),
        ("DELETE FROM vector WHERE id = 2", "reference"),
        ("DELETE FROM document WHERE id = 2", "reference"),
        ("DELETE FROM source WHERE document_id = 2", "text"),
        ("UPDATE source SET text = x'00' WHERE document_id = 2", "text"),
        (
            "UPDATE source SET text = (SELECT text FROM source WHERE document_id = 3) "
            "WHERE document_id = 2",
            "span",
        ),
        ("DELETE FROM passage WHERE id = 7", "reference"),
        ("UPDATE document SET passages = passages + 1 WHERE id = 2", "count"),
        ("UPDATE document SET metadata = 'no JSON' WHERE id = 2", "checksum"),
        ("UPDATE document SET metadata = '{\"a\": 2}' WHERE id = 2", "checksum"),
        ("UPDATE document SET title = 'Another' WHERE id = 2", "checksum"),
        ("UPDATE document SET path = x'78' WHERE id = 2", "checksum"),
        ("UPDATE document SET language = 'eNglish' WHERE id = 2", "checksum"),
        ("UPDATE passage SET first_line = 7 WHERE id = 2", "checksum"),
        ("UPDATE passage SET text = CAST(x'41ff42' AS TEXT) WHERE id = 2", "checksum"),
        ("UPDATE checkpoint SET generation = 0, max_vector_id = 2", "checksum"),
        ("UPDATE checkpoint SET sha256 = zeroblob(32)", "checksum"),
        ("UPDATE checkpoint SET vectors = vectors - 1", "checksum"),
    ],
)
def test_every_kind_of_damage_is_found(
    long: Corpus, sql: Sql, kinds: Callable[[Corpus], list[str]], statement: str, kind: str
) -> None:
    sql("PRAGMA foreign_keys = OFF")
    sql(statement)
    found = kinds(long)
    assert kind in found, found
    for problem in long.verify().problems:
        assert problem.where and problem.remedy


def test_damage_names_the_document(long: Corpus, sql: Sql) -> None:
    sql("UPDATE passage SET text = upper(text) WHERE id = 3")
    (problem,) = long.verify().problems
    assert problem.where == "passage 3 of capybara"
    assert "index" in problem.remedy


def test_verify_changes_nothing(
    long: Corpus, directory: Path, digest: Callable[[Path], dict[str, str]]
) -> None:
    next((directory / DIRECTORY).glob("*.term")).unlink()
    before = digest(directory)
    assert not long.verify().ok
    assert digest(directory) == before


def test_lexical_files_that_are_not_there_are_no_damage(long: Corpus, directory: Path) -> None:
    """A process that was to build them may have died; whoever opens the index next builds them."""
    shutil.rmtree(directory / DIRECTORY)
    assert long.verify().ok


def test_files_of_tantivy_that_have_changed_places_are_found(
    long: Corpus,
    directory: Path,
    kinds: Callable[[Corpus], list[str]],
    put_bytes: Callable[..., None],
) -> None:
    """Their checksums fit, and their names are not covered by them."""
    long.add([Document(id="late", text="A late passage of other words.")])
    long.close()
    first, second, *_ = sorted(
        (directory / DIRECTORY).glob("*.term"), key=lambda file: file.stat().st_size, reverse=True
    )
    one, other = first.read_bytes(), second.read_bytes()
    put_bytes(first, other)
    put_bytes(second, one)
    assert kinds(long) == ["lexical"]
    assert long.repair().rebuilt == ("lexical",)
    assert long.verify().ok
    assert long.search("late", mode="lexical")[0].path == "late"


def test_what_is_no_index_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFound):
        verify(tmp_path / "nowhere")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(NotAnIndex):
        verify(tmp_path)


def test_a_checkpoint_that_fits_another_time_is_found(
    long: Corpus, sql: Sql, kinds: Callable[[Corpus], list[str]]
) -> None:
    long.delete(["badger"])
    assert kinds(long) == []
    sql("DELETE FROM deletion WHERE kind = 'vector'")
    assert set(kinds(long)) == {"faiss"}


def _whole(corpus: Corpus) -> list[Any]:
    queries = ("aardvark burrow", "thing7 other9", "Sentence 50")
    return [
        [(hit.path, hit.text, hit.heading, hit.metadata) for hit in corpus.search(q, mode=mode)]  # type: ignore[arg-type]
        for q in queries
        for mode in ("lexical", "dense", "hybrid")
    ]


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_to_the_database_is_never_served(
    long: Corpus, directory: Path, tmp_path: Path, embedder: Any, seed: int
) -> None:
    """Whatever bytes change: an error that is ours, a problem that is named, or no effect."""
    chance = random.Random(seed)
    answers = _whole(long)
    long.close()
    file = directory / "ragembed.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    good = file.read_bytes()
    for _ in range(6):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(directory, copy)
        for name in ("ragembed.db-wal", "ragembed.db-shm"):
            (copy / name).unlink(missing_ok=True)
        damaged = bytearray(good)
        if chance.random() < 0.2:
            start = chance.randrange(len(good) // 512) * 512
            damaged[start : start + 512] = bytes(512)
        else:
            for _ in range(chance.choice([1, 1, 8])):
                damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        (copy / "ragembed.db").write_bytes(bytes(damaged))
        try:
            problems = verify(copy)
        except RagembedError:
            continue  # the whole is refused
        try:
            with Corpus(copy, encoder=embedder) as corpus:
                served = _whole(corpus)
        except RagembedError:
            assert problems
            continue
        assert problems or served == answers


def test_commits_that_a_damaged_log_has_lost_are_told(
    filled: Corpus,
    directory: Path,
    open_corpus: Callable[..., Corpus],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """SQLite takes a log for ended where it is damaged; tantivy has seen what was behind it."""
    with filled.reading() as reader:  # an old commit in use keeps the log from being folded in
        reader.counts()
        filled.add([Document(id="late", text="A late passage.")])
        copy = tmp_path / "copy"
        shutil.copytree(directory, copy)
    log = bytearray((copy / "ragembed.db-wal").read_bytes())
    log[40] ^= 1
    (copy / "ragembed.db-wal").write_bytes(bytes(log))
    (copy / "ragembed.db-shm").unlink()
    lost = open_corpus(copy)
    assert "commits were lost" in caplog.text
    assert "late" not in {document.path.decode() for document in lost.documents()}
    assert lost.search("aardvark", mode="lexical")[0].path == "aardvark"
