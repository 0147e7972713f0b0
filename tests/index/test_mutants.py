"""What only a mutant of the store has shown not to be tested: see tests/soak/mutants.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragembed import Corpus, Document, indexer
from ragembed.index.commit import Writer
from ragembed.index.store import Store

Sql = Callable[..., list[Any]]


def committed(directory: Path) -> set[str]:
    """The FAISS files that a committed row names, as another process sees it."""
    uri = f"{(directory / 'ragembed.db').as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return {file for (file,) in connection.execute("SELECT file FROM checkpoint")}


def there(directory: Path) -> set[str]:
    return {file.name for file in directory.glob("vectors-*")}


def test_a_file_that_is_named_is_there_at_any_moment(
    corpus: Corpus, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old files go after the commit that strikes them out, and not before."""
    real, sweeps = Writer.sweep_files, []

    def sweep(self: Writer) -> None:
        real(self)
        sweeps.append(committed(directory) <= there(directory))

    monkeypatch.setattr(Writer, "sweep_files", sweep)
    for n in range(5):
        corpus.add([Document(id=f"d{n}-{i}", text=f"word{n} of {i}") for i in range(4)])
    corpus.compact()
    assert len(sweeps) > 8 and all(sweeps)


@pytest.fixture
def two_files(corpus: Corpus, directory: Path) -> Corpus:
    """Two FAISS files, with deletions before, between and after them."""
    corpus.add([Document(id=f"d{n}", text=f"word{n} burrow") for n in range(40)])
    corpus.delete(["d0"])
    corpus.add([Document(id=f"e{n}", text=f"more{n} burrow") for n in range(8)])
    corpus.delete(["d1"])
    assert len(there(directory)) == 2
    return corpus


@pytest.mark.parametrize("lost", [0, 1])
def test_both_kept_files_are_of_use(
    two_files: Corpus,
    directory: Path,
    sql: Sql,
    open_corpus: Callable[..., Corpus],
    monkeypatch: pytest.MonkeyPatch,
    lost: int,
) -> None:
    """The deletion log reaches back to the older one, and `floor` says so."""
    files = [file for (file,) in sql("SELECT file FROM checkpoint ORDER BY id")]
    (directory / files[lost]).unlink()
    real, begun = Store.vectors, []

    def vectors(self: Store, model: Any, after: int = 0) -> Iterator[Any]:
        begun.append(after)
        return real(self, model, after)

    monkeypatch.setattr(Store, "vectors", vectors)
    reader = open_corpus()
    hits = reader.search("burrow", k=100, mode="dense")
    assert {hit.path for hit in hits} == {d.path.decode() for d in two_files.documents()}
    assert begun and 0 not in begun  # not all was read anew
    with reader._with_searcher().snapshot() as now:
        assert now.vector_count == 46  # nothing that was deleted is taken for living


def test_a_window_that_is_not_what_was_written_marks_nothing(
    filled: Corpus, sql: Sql, open_corpus: Callable[..., Corpus]
) -> None:
    sql("UPDATE window SET start = start + 2 WHERE passage_id = 1")
    for corpus in (filled, open_corpus()):
        hits = corpus.search("aardvark burrow", k=50, mode="dense")
        assert "aardvark" not in {hit.path for hit in hits}
        (hit,) = (h for h in corpus.search("aardvark burrow", k=50) if h.path == "aardvark")
        assert hit.dense is None


def test_vectors_that_change_places_are_not_used(
    filled: Corpus, sql: Sql, directory: Path, open_corpus: Callable[..., Corpus]
) -> None:
    """Each is whole, and says the wrong thing under the other's id."""
    rows = sql("SELECT model_id, key, data, crc FROM vector WHERE id IN (1, 2) ORDER BY id")
    statement = "UPDATE vector SET model_id = ?, key = ?, data = ?, crc = ? WHERE id = ?"
    sql(statement, rows[0][0], b"for the moment", *rows[0][2:], 1)
    sql(statement, *rows[0], 2)
    sql(statement, *rows[1], 1)
    for file in directory.glob("vectors-*"):
        file.unlink()
    hits = open_corpus().search("aardvark burrow badger", k=50, mode="dense")
    assert {hit.path for hit in hits} == {"capybara", "dormouse", "echidna", "fossa"}


def test_an_id_is_never_given_twice(corpus: Corpus, sql: Sql) -> None:
    """Else a reader that is behind takes the new for the old."""
    used: dict[str, set[int]] = {table: set() for table in ("document", "passage", "vector")}
    for n in range(3):
        corpus.add([Document(id=f"d{n}", text=f"a text number{n}")])
        for table, before in used.items():
            now = {id for (id,) in sql(f"SELECT id FROM {table}")}
            assert not now & before
            before |= now
        corpus.delete([f"d{n}"])


def test_vectors_that_came_ahead_of_their_document_are_swept(
    corpus: Corpus, sql: Sql, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between the two; nobody comes back with the document."""
    monkeypatch.setattr(indexer, "BATCH_WINDOWS", 5)
    calls = []

    def interrupt(texts: Sequence[str]) -> None:
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt

    embedder.before = interrupt
    text = "\n\n".join(" ".join(f"word{n}x{i}" for i in range(120)) for n in range(12))
    with pytest.raises(KeyboardInterrupt):
        corpus.add([Document(id="long", text=text)])
    assert sql("SELECT count(*) FROM vector") == [(10,)]
    assert corpus.verify().ok
    embedder.before = None
    corpus.add([Document(id="short", text="A short text.")])
    assert sql("SELECT count(*) FROM vector") == [(1,)]
    assert corpus.verify().ok


@pytest.mark.parametrize(
    "change",
    [
        "title = 'Another'",
        "path = CAST('other' AS BLOB)",
        "metadata = '{\"a\": 2}'",
        "sha256 = x'00'",
    ],
)
def test_a_damaged_document_is_not_served(
    filled: Corpus, sql: Sql, open_corpus: Callable[..., Corpus], change: str
) -> None:
    sql(f"UPDATE document SET {change} WHERE id = 1")
    for corpus in (filled, open_corpus()):
        for mode in ("lexical", "dense", "hybrid"):
            hits = corpus.search("aardvark burrow", k=50, mode=mode)  # type: ignore[arg-type]
            assert len(hits) == 5 and 1 not in {hit.document_id for hit in hits}
