"""Readers: they see the commits of others, never half of one, and never what is gone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragembed import Corpus, Document
from ragembed.errors import IndexFailure, InvalidInput
from ragembed.index import checkpoint, commit, lookup, snapshot
from ragembed.index.commit import Writer
from ragembed.index.snapshot import Searcher, Snapshot

MODES = ("lexical", "dense", "hybrid")


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_sees_each_commit_of_another(
    filled: Corpus, open_corpus: Callable[..., Corpus], found: Callable[..., set[str]], mode: str
) -> None:
    reader = open_corpus()
    assert found(reader, "burrow", mode) == found(filled, "burrow", mode)
    for n in range(12):  # more than there may be segments
        filled.add([Document(id=f"new{n}", text=f"late{n} burrow")])
        assert reader.search(f"late{n} burrow", mode=mode)[0].path == f"new{n}"  # type: ignore[arg-type]
        if n % 2:
            filled.delete([f"new{n}"])
            assert f"new{n}" not in found(reader, "burrow", mode)
    filled.add([Document(id="new0", text="quite another thing")])
    assert reader.search("quite another thing", mode=mode)[0].path == "new0"  # type: ignore[arg-type]
    alive = {document.path.decode() for document in reader.documents()}
    assert found(reader, "late0 burrow quite another thing", mode) <= alive


_WRITE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("doubles", sys.argv[2])
doubles = importlib.util.module_from_spec(spec)
spec.loader.exec_module(doubles)
from ragembed import Corpus, Document
with Corpus(sys.argv[1], encoder=doubles.FakeEmbedder()) as corpus:
    corpus.add([Document(id="stranger", text="a stranger in the burrow")])
    corpus.delete(["aardvark"])
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_sees_the_commits_of_another_process(
    filled: Corpus, directory: Path, found: Callable[..., set[str]], mode: str
) -> None:
    assert "aardvark" in found(filled, "burrow", mode)
    doubles = Path(__file__).parents[1] / "doubles.py"
    subprocess.run([sys.executable, "-c", _WRITE, str(directory), str(doubles)], check=True)
    after = found(filled, "burrow", mode)
    assert "stranger" in after and "aardvark" not in after


def test_a_snapshot_stays_one_commit(filled: Corpus, directory: Path) -> None:
    searcher = Searcher(directory)
    with closing(searcher), searcher.snapshot() as now:
        before = now.store.counts(), now.store.generation
        nearest = now.nearest(_direction(now), 10)
        matched = now.best_matches(["burrow"], 10)
        filled.delete(["aardvark", "badger"])
        filled.add([Document(id="x", text="burrow")])
        assert (now.store.counts(), now.store.generation) == before
        assert now.nearest(_direction(now), 10) == nearest
        assert now.best_matches(["burrow"], 10) == matched
        assert len(lookup.passages(now.store, [id for id, _ in matched])) == 6


def _direction(snapshot: Snapshot) -> Any:
    assert snapshot.model is not None
    (_, array), *_ = snapshot.store.vectors(snapshot.model)
    return array[0]


def _count(corpus: Corpus) -> int:
    with corpus._with_searcher().snapshot() as now:
        return now.vector_count


def test_a_reader_older_than_the_deletion_log_starts_again(
    corpus: Corpus, open_corpus: Callable[..., Corpus], found: Callable[..., set[str]]
) -> None:
    corpus.add([Document(id=f"d{n}", text=f"word{n} burrow") for n in range(10)])
    reader = open_corpus()
    assert len(found(reader, "burrow", "dense")) == 10
    corpus.delete(["d0", "d1"])
    for n in range(4):  # checkpoints, and with each the log behind it is dropped
        corpus.add([Document(id=f"e{n}-{i}", text=f"more{n} burrow {i}") for i in range(9)])
    view = reader._with_searcher()._view
    with reader.reading() as store:
        assert view is not None and view.generation < store.floor
    for mode in MODES:
        assert found(reader, "burrow", mode) == found(corpus, "burrow", mode)
        assert not found(reader, "burrow", mode) & {"d0", "d1"}
    assert _count(reader) == 10 - 2 + 4 * 9


def test_a_reader_counts_the_vectors_it_may_return(
    corpus: Corpus, open_corpus: Callable[..., Corpus]
) -> None:
    """Vectors that came and went between two looks are not in the segments."""
    corpus.add([Document(id=f"d{n}", text=f"word{n} burrow") for n in range(100)])
    reader = open_corpus()
    reader.search("burrow", mode="dense")
    corpus.add([Document(id="short", text="a short visit")])
    corpus.delete(["short", "d1"])
    reader.search("burrow", mode="dense")
    assert _count(reader) == 99


def test_a_restored_database_does_not_hang_the_reader(
    filled: Corpus,
    directory: Path,
    tmp_path: Path,
    open_corpus: Callable[..., Corpus],
    found: Callable[..., set[str]],
) -> None:
    """The lexical files are of a later time than the database."""
    backup = tmp_path / "backup.db"
    with closing(sqlite3.connect(backup)) as copy:
        with filled.reading() as store:
            store.connection.backup(copy)
    filled.add([Document(id="late", text="late burrow")])
    filled.close()
    for name in ("ragembed.db-wal", "ragembed.db-shm"):
        (directory / name).unlink(missing_ok=True)
    (directory / "ragembed.db").write_bytes(backup.read_bytes())
    restored = open_corpus()
    assert "late" not in found(restored, "burrow")
    assert found(restored, "aardvark", "hybrid") >= {"aardvark"}
    assert restored.verify().ok


def test_a_slow_writer_does_not_stop_readers(
    filled: Corpus,
    directory: Path,
    open_corpus: Callable[..., Corpus],
    found: Callable[..., set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer that has committed to the database and takes its time with tantivy."""
    monkeypatch.setattr(snapshot, "PATIENCE", 0.2)
    started, go_on = threading.Event(), threading.Event()
    real = Writer._follow

    def slow(self: Writer, transaction: Any) -> None:
        started.set()
        assert go_on.wait(20)
        real(self, transaction)

    monkeypatch.setattr(Writer, "_follow", slow)
    document = Document(id="late", text="late burrow")
    thread = threading.Thread(target=lambda: filled.add([document]))
    thread.start()
    try:
        assert started.wait(20)
        reader = open_corpus()
        assert "late" in found(reader, "burrow")
        assert reader._with_searcher()._in_memory
    finally:
        go_on.set()
        thread.join()
    monkeypatch.setattr(Writer, "_follow", real)
    filled.delete(["late"])
    assert "late" not in found(reader, "burrow")
    assert not reader._with_searcher()._in_memory


def test_readers_and_a_writer_at_once(filled: Corpus, open_corpus: Callable[..., Corpus]) -> None:
    """Whatever the moment: an answer is of one commit, and what was deleted before is not in it."""
    errors: list[BaseException] = []
    deleted: set[str] = set()
    done = threading.Event()

    def read() -> None:
        try:
            with open_corpus() as reader:
                while not done.is_set():
                    gone = set(deleted)
                    for mode in MODES:
                        hits = reader.search("burrow pair", k=50, mode=mode)  # type: ignore[arg-type]
                        paths = {hit.path for hit in hits}
                        assert not paths & gone
                        assert len({path for path in paths if path.startswith("pair")}) != 1
        except BaseException as error:  # handed to the test
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(10):
        pair = [f"pair{n}a", f"pair{n}b"]
        filled.add([Document(id=id, text=f"a burrow pair {id}") for id in pair])
        filled.delete(pair)
        deleted.update(pair)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert filled.verify().ok


def test_a_reader_that_mends_does_not_turn_a_writer_away(
    filled: Corpus,
    open_corpus: Callable[..., Corpus],
    found: Callable[..., set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds the writer's lock for a moment; nobody is to be told of "another writer" for that."""
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_follow", lambda *_: None)
        filled.add([Document(id="late", text="late burrow")])
    mending = threading.Event()
    real = commit.current_lexical

    def slowly(store: Any) -> Any:
        mending.set()
        time.sleep(0.2)
        return real(store)

    reader = open_corpus()
    answers: list[set[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(commit, "current_lexical", slowly)
        thread = threading.Thread(target=lambda: answers.append(found(reader, "late")))
        thread.start()
        assert mending.wait(20)
        filled.add([Document(id="later", text="a later burrow")])
        thread.join()
    assert answers == [{"late"}]
    assert found(reader, "later") == {"later"}


def test_the_vectors_are_not_loaded_again_for_nothing(
    filled: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.search("burrow", mode="dense")
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("loaded again"))
    monkeypatch.setattr(snapshot, "current_vectors", lambda *_: pytest.fail("built again"))
    filled.search("burrow", mode="dense")
    filled.search("burrow", mode="hybrid")


def test_threads_share_one_corpus(corpus: Corpus, found: Callable[..., set[str]]) -> None:
    """Each search sees one commit, whichever thread has looked at which commit before."""
    corpus.add([Document(id="d0", text="round0 burrow")])
    failures: list[BaseException] = []
    stop = threading.Event()
    looks = [0, 0, 0]

    def ask(number: int) -> None:
        try:
            while not stop.is_set():
                for mode in MODES:
                    hits = corpus.search("burrow", k=100, mode=mode)  # type: ignore[arg-type]
                    rounds = {int(hit.text.split()[0][5:]) for hit in hits}
                    assert rounds == set(range(max(rounds) + 1)), rounds
                looks[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for n in range(1, 25):
        corpus.add([Document(id=f"d{n}", text=f"round{n} burrow")])
    while min(looks) < 3 and not failures:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(corpus._with_searcher()._idle) <= 2 * 3 + 1  # connections are used again


def test_a_closed_searcher_says_so(filled: Corpus, directory: Path) -> None:
    searcher = Searcher(directory)
    searcher.close()
    with pytest.raises(IndexFailure, match="has been closed"), searcher.snapshot():
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_is_told_not_to_search(filled: Corpus, directory: Path) -> None:
    searcher = Searcher(directory)
    with closing(searcher):
        searcher._process += 1  # as if this were another process
        with pytest.raises(IndexFailure, match="forked"), searcher.snapshot():
            pass
        searcher._process = os.getpid()


def test_a_long_tail_is_exchanged_for_the_new_checkpoint(
    corpus: Corpus, open_corpus: Callable[..., Corpus]
) -> None:
    corpus.add([Document(id=f"d{n}", text=f"word{n} burrow") for n in range(10)])
    reader = open_corpus()
    reader.search("burrow", mode="dense")
    for n in range(10, 40):
        corpus.add([Document(id=f"d{n}", text=f"word{n} burrow")])
        reader.search("burrow", mode="dense")
    view = reader._with_searcher()._view
    assert view is not None and view.vectors.size == 40
    assert view.vectors.tail <= 3 * commit.CHECKPOINT_SHARE * view.vectors.size


@pytest.mark.parametrize("mode", MODES)
def test_ids_of_a_filter_may_be_of_any_kind(filled: Corpus, mode: str) -> None:
    ids = [document.id for document in filled.documents()][:2]
    plain = filled.search("burrow", mode=mode, documents=ids)  # type: ignore[arg-type]
    assert len(plain) == 2
    for same in (np.array(ids), {*ids, -4, 0, 2**70}, [*ids, *range(10**6, 10**6 + 1500), 2**40]):
        assert filled.search("burrow", mode=mode, documents=same) == plain  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="whole number"):
        filled.search("burrow", mode=mode, documents=["1"])  # type: ignore[arg-type, list-item]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [0, 1, 3, 20])
def test_a_filter_equals_brute_force_on_the_documents(corpus: Corpus, mode: str, size: int) -> None:
    """The texts share windows: a vector may belong to a document that does not count."""
    corpus.add(
        [Document(id=f"d{n}", text=f"burrow number {n % 7} of common words") for n in range(40)]
    )
    chosen = [document.id for document in corpus.documents()][5 : 5 + size]
    hits = corpus.search("common burrow 3", k=1000, mode=mode, documents=chosen)  # type: ignore[arg-type]
    assert {hit.document_id for hit in hits} <= set(chosen)
    texts = {document.id: document.path.decode() for document in corpus.documents()}
    places = {hit.path for hit in hits} | {place.path for hit in hits for place in hit.also}
    assert places == {texts[id] for id in chosen}


@pytest.mark.parametrize("mode", MODES)
def test_many_copies_leave_room_for_the_rest(corpus: Corpus, mode: str) -> None:
    corpus.add([Document(id=f"copy{n}", text="same burrow") for n in range(500)])
    corpus.add([Document(id=f"other{n}", text=f"burrow of another kind {n}") for n in range(4)])
    hits = corpus.search("same burrow", k=5, mode=mode)  # type: ignore[arg-type]
    assert len(hits) == 5
    assert len({hit.text for hit in hits}) == 5
