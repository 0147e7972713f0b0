"""One writer, one commit point, and derived files that always catch up."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragembed import Corpus, Document
from ragembed.errors import IndexLocked, InvalidInput, StorageError
from ragembed.index import derive
from ragembed.index.commit import Writer
from ragembed.index.lexical import DIRECTORY, LexicalFailure, LexicalIndex
from ragembed.index.rows import DocumentRow, FileFacts, PassageRow, WindowRow
from ragembed.index.transaction import Transaction

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
ANSWERS = ("aardvark", "burrow", "lives")

_HOLD = """
import sys
from pathlib import Path
from ragembed.index.commit import Writer
with Writer(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_writer(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        assert child.stdout.readline() == "locked\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


# -- the lock --------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_holds_the_lock(filled: Corpus, directory: Path) -> None:
    with other_writer(directory) as child:
        for write in (
            lambda: filled.add([Document(id="x", text="text")]),
            lambda: filled.delete(["aardvark"]),
            lambda: filled.remove(["aardvark"]),
            lambda: filled.sync(),
        ):
            with pytest.raises(IndexLocked, match=rf"process {child.pid}\b") as caught:
                write()
            assert caught.value.exit_code == 6
        assert len(filled.search("aardvark", mode="lexical")) == 1  # readers go on


def test_two_writers_of_one_process_exclude_each_other(filled: Corpus, directory: Path) -> None:
    with Writer(directory), pytest.raises(IndexLocked, match=str(os.getpid())):
        filled.add([Document(id="x", text="text")])
    filled.add([Document(id="x", text="text")])


@POSIX
def test_a_killed_writer_leaves_no_lock(filled: Corpus, directory: Path) -> None:
    with other_writer(directory) as child:
        child.kill()
        assert child.wait() == -signal.SIGKILL
        filled.add([Document(id="x", text="text")])
    assert (directory / "LOCK").read_text() == str(os.getpid())


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff\xfe", b"99999999999999999999"])
def test_the_lock_file_is_only_advice(filled: Corpus, directory: Path, content: bytes) -> None:
    (directory / "LOCK").write_bytes(content)
    filled.add([Document(id="x", text="text")])
    with Writer(directory):
        (directory / "LOCK").write_bytes(content)
        with pytest.raises(IndexLocked):
            filled.delete(["x"])


KEY = hashlib.sha256(b"text").digest()

# -- transactions ----------------------------------------------------------------------------------


def row(path: bytes = b"raw", key: bytes = KEY) -> DocumentRow:
    window = WindowRow(0, 4, key)
    passage = PassageRow(0, 4, (1, 1), None, (), 1, 0, "text", (window,))
    return DocumentRow(
        root_id=None, path=path, facts=FileFacts(b"\0" * 32), format="text", encoding="utf-8",
        language="english", title="", text="text", passages=(passage,),
    )  # fmt: skip


def put(transaction: Transaction, writer: Writer, path: bytes = b"raw", key: bytes = KEY) -> None:
    model = writer.store.model()
    assert model is not None
    vector = np.zeros((1, model.dimension), np.float32)
    vector[0, 0] = 1
    ids = transaction.put_vectors(model, [key], vector)
    transaction.put_document(row(path, key), model, ids)


class Interrupted(BaseException):
    """Stands for Ctrl-C and its like."""


@pytest.mark.parametrize("error", [ValueError, InvalidInput, Interrupted])
def test_a_transaction_that_raises_leaves_nothing(
    filled: Corpus, directory: Path, error: type[BaseException]
) -> None:
    with Writer(directory) as writer:
        before = list(writer.store.connection.iterdump())
        with pytest.raises(error), writer.transaction() as transaction:
            put(transaction, writer)
            transaction.delete_document(filled.documents()[0].id)
            transaction.set("chunking", "{}")
            raise error("in the middle")
        assert list(writer.store.connection.iterdump()) == before
        assert writer.lexical.snapshot.generation == writer.store.generation
        with writer.transaction() as transaction:
            put(transaction, writer)
    assert len(filled.search("text", mode="lexical")) == 1
    assert filled.verify().ok


def test_a_row_that_sqlite_refuses_undoes_the_whole(filled: Corpus, directory: Path) -> None:
    with Writer(directory) as writer:
        before = list(writer.store.connection.iterdump())
        with pytest.raises(Exception, match="UNIQUE"), writer.transaction() as transaction:
            put(transaction, writer, key=b"one")
            put(transaction, writer, path=b"aardvark", key=b"two")  # a path that is taken
        assert list(writer.store.connection.iterdump()) == before


def test_vectors_and_keys_have_to_fit(filled: Corpus, directory: Path) -> None:
    with Writer(directory) as writer, pytest.raises(InvalidInput, match="keys"):
        with writer.transaction() as transaction:
            model = writer.store.model()
            assert model is not None
            transaction.put_vectors(model, [b"a", b"b"], np.eye(1, model.dimension, dtype="f4"))


def test_the_generation_counts_commits(filled: Corpus, directory: Path) -> None:
    with Writer(directory) as writer:
        before = writer.store.generation
        with writer.transaction():
            pass
        assert writer.store.generation == before + 1 == writer.lexical.snapshot.generation


# -- tantivy behind the database -------------------------------------------------------------------


@pytest.fixture
def behind(filled: Corpus, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make commits that tantivy does not hear of, as when the process dies between the two."""

    def lag(generations: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_follow", lambda *_: None)
            for n in range(generations):
                filled.add([Document(id=f"new{n}", text=f"late{n} arrival in the burrow")])
                filled.delete([("aardvark", "badger", "capybara")[n]])

    return lag


def check_lag(corpus: Corpus, found: Callable[..., set[str]], generations: int) -> None:
    gone = {"aardvark", "badger", "capybara"} - {
        ("aardvark", "badger", "capybara")[n] for n in range(generations, 3)
    }
    alive = {"aardvark", "badger", "capybara", "dormouse", "echidna", "fossa"} - gone
    assert found(corpus, "burrow") == alive | {f"new{n}" for n in range(generations)}
    for n in range(generations):
        assert found(corpus, f"late{n}") == {f"new{n}"}
    assert corpus.verify().ok


def generation(corpus: Corpus) -> int:
    with corpus.reading() as store:
        return store.generation


def lexical_generation(directory: Path) -> int:
    return LexicalIndex.open(directory).snapshot.generation


@pytest.mark.parametrize("generations", [1, 3])
def test_the_next_writer_catches_up(
    filled: Corpus,
    directory: Path,
    behind: Callable[[int], None],
    found: Callable[..., set[str]],
    monkeypatch: pytest.MonkeyPatch,
    generations: int,
) -> None:
    behind(generations)
    assert lexical_generation(directory) < generation(filled)
    monkeypatch.setattr(derive, "rebuild_lexical", lambda *_: pytest.fail("all was built again"))
    with Writer(directory) as writer:
        assert writer.lexical.snapshot.generation == writer.store.generation
    check_lag(filled, found, generations)


@pytest.mark.parametrize("generations", [1, 3])
def test_a_reader_catches_up_when_no_writer_lives(
    directory: Path,
    behind: Callable[[int], None],
    found: Callable[..., set[str]],
    open_corpus: Callable[..., Corpus],
    generations: int,
) -> None:
    behind(generations)
    reader = open_corpus()
    check_lag(reader, found, generations)
    assert lexical_generation(directory) == generation(reader)


def test_a_reader_that_may_not_write_answers_from_memory(
    filled: Corpus,
    directory: Path,
    behind: Callable[[int], None],
    found: Callable[..., set[str]],
    open_corpus: Callable[..., Corpus],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behind(2)
    reader = open_corpus()
    with monkeypatch.context() as patch:

        def refused(_: Writer) -> Writer:
            raise StorageError("read-only")

        patch.setattr(Writer, "__enter__", refused)
        check_lag(reader, found, 2)
        check_lag(reader, found, 2)
        assert lexical_generation(directory) < generation(reader)
    # The disk can be written again: the files on it are used again.
    filled.add([Document(id="later", text="a much later arrival")])
    assert found(reader, "later") == {"later"}
    filled.delete(["later"])
    assert found(reader, "later") == set()


@pytest.mark.parametrize("way", ["deleted", "damaged", "emptied", "foreign"])
@pytest.mark.parametrize("opener", ["reader", "writer"])
def test_lexical_files_are_built_again(
    filled: Corpus,
    directory: Path,
    found: Callable[..., set[str]],
    kinds: Callable[[Corpus], list[str]],
    open_corpus: Callable[..., Corpus],
    put_bytes: Callable[[Path, bytes], None],
    way: str,
    opener: str,
) -> None:
    # Paths, not scores: tantivy's BM25 counts deleted documents until their segment is merged.
    answers = [[hit.path for hit in filled.search(query, mode="lexical")] for query in ANSWERS]
    files = directory / DIRECTORY
    if way == "deleted":
        shutil.rmtree(files)
    elif way == "damaged":
        file = next(files.glob("*.idx"))
        put_bytes(file, file.read_bytes()[::-1])
    elif way == "emptied":
        shutil.rmtree(files)
        LexicalIndex.create(directory).apply(generation(filled), 99, (), ())
    else:
        put_bytes(files / "meta.json", b"{}")
    assert kinds(filled) == ([] if way == "deleted" else ["lexical"])
    if opener == "writer" or way == "emptied":  # which claims to be current: a writer counts
        with Writer(directory):
            pass
    again = open_corpus()
    assert [[h.path for h in again.search(q, mode="lexical")] for q in ANSWERS] == answers
    assert again.verify().ok
    assert found(filled, "aardvark") == {"aardvark"}  # a reader that had the old files open


def test_a_failing_lexical_commit_does_not_undo_the_database(
    filled: Corpus, found: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = LexicalIndex.apply, [1]

    def apply(self: LexicalIndex, *arguments: Any) -> None:
        if failures:
            failures.pop()
            raise LexicalFailure("the disk coughed")
        real(self, *arguments)

    monkeypatch.setattr(LexicalIndex, "apply", apply)
    filled.add([Document(id="x", text="unusual gnu")])
    assert not failures
    assert found(filled, "gnu") == {"x"}
    assert found(filled, "burrow") >= {"aardvark", "fossa"}
    assert filled.verify().ok
