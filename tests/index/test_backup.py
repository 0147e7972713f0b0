"""Backups: one commit, whole or not there; restored beside the place, then renamed."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragembed import Corpus, Document
from ragembed.errors import (
    IndexDamaged,
    IndexLocked,
    IndexNotFound,
    InvalidInput,
    NotAnIndex,
    StorageError,
)
from ragembed.index import backup as module
from ragembed.index import lock, schema
from ragembed.index.backup import backup, restore
from ragembed.index.checksums import row_crc
from ragembed.index.commit import Writer
from ragembed.index.lexical import DIRECTORY, LexicalIndex
from ragembed.index.lock import writer_lock
from ragembed.index.store import Store
from ragembed.index.verify import verify

Sql = Callable[..., list[Any]]
Opener = Callable[..., Corpus]
Digest = Callable[[Path], dict[str, str]]
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file modes and signals")


@pytest.fixture
def copy(directory: Path) -> Path:
    return directory.with_name("copy")


def paths(directory: Path) -> set[str]:
    with closing(Store.open(directory)) as store:
        return {document.path.decode() for document in store.documents()}


def history(directory: Path) -> str:
    with closing(Store.open(directory)) as store:
        return store.history


def left_over(directory: Path) -> list[str]:
    """What lies beside an index under a name that begins like a draft's."""
    return [path.name for path in directory.parent.glob(f".{directory.name}.*")]


# -- backup ------------------------------------------------------------------------------------


def test_a_backup_is_a_whole_index(
    filled: Corpus, directory: Path, copy: Path, open_corpus: Opener
) -> None:
    report = backup(directory, copy)
    assert (report.documents, report.directory) == (6, str(copy))
    assert report.bytes == sum(p.stat().st_size for p in copy.rglob("*") if p.is_file())
    assert verify(copy, "deep") == []
    with closing(Store.open(copy)) as store:
        assert (store.generation, store.history) == (report.generation, history(directory))
        assert len(store.checkpoints(1)) == len(list(copy.glob("vectors-*"))) > 0
    assert LexicalIndex.open(copy).snapshot.generation == report.generation
    reader = open_corpus(copy)
    for mode in ("lexical", "dense", "hybrid"):
        answers = [
            [(hit.path, hit.score) for hit in corpus.search("aardvark", mode=mode)]  # type: ignore[arg-type]
            for corpus in (filled, reader)
        ]
        assert answers[0] == answers[1]


@POSIX
def test_a_backup_is_private(filled: Corpus, directory: Path, copy: Path) -> None:
    copy.mkdir(mode=0o755)
    backup(directory, copy)
    for path in (copy, *copy.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert {path.name for path in copy.iterdir()} == {
        "ragembed.db",
        DIRECTORY,
        *(path.name for path in copy.glob("vectors-*.faiss")),
    }


def test_a_backup_while_a_writer_works_is_one_commit(
    corpus: Corpus, directory: Path, copy: Path, open_corpus: Opener
) -> None:
    """Each commit adds a pair and takes one of the pair before away."""
    corpus.add([Document(id="a0", text="first"), Document(id="b0", text="second")])
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with open_corpus() as writer:
                n = 0
                while not stop.is_set():
                    n += 1
                    pair = [Document(id=f"{x}{n}", text=f"pair{n} {x} " * 20) for x in "ab"]
                    writer.add(pair)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    reports = []
    try:
        for n in range(6):
            reports.append((backup(directory, copy / str(n)), copy / str(n)))
    finally:
        stop.set()
        thread.join()
    assert not failed
    generations = [report.generation for report, _ in reports]
    assert generations == sorted(generations) and generations[-1] > generations[0]
    for report, place in reports:
        assert verify(place, "deep") == []
        found = paths(place)
        pairs = len(found) // 2
        assert found == {f"{x}{n}" for x in "ab" for n in range(pairs)}
        assert report.documents == 2 * pairs


def test_what_is_committed_meanwhile_does_not_get_in(
    filled: Corpus, directory: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the rows, not the FAISS file; and the file that the writer drops is copied still."""
    monkeypatch.setattr(schema, "BUSY_TIMEOUT", 0.01)  # a writer that closes waits for the snapshot
    before = {path.name for path in directory.glob("vectors-*")}
    real = module._copy_database

    def late(*arguments: Any) -> None:
        for n in range(3):
            filled.add([Document(id=f"late{n}", text=f"late{n} aardvark")])
        real(*arguments)

    monkeypatch.setattr(module, "_copy_database", late)
    report = backup(directory, copy)
    assert not before & {path.name for path in directory.glob("vectors-*")}
    assert {path.name for path in copy.glob("vectors-*")} == before
    assert report.documents == 6 and not [path for path in paths(copy) if "late" in path]
    assert verify(copy, "deep") == []


def test_a_bad_faiss_file_is_left_out(
    filled: Corpus, directory: Path, copy: Path, put_bytes: Callable[[Path, bytes], None]
) -> None:
    filled.add([Document(id="gnu", text="A gnu has no burrow.")])
    bad, good = sorted(directory.glob("vectors-*"), key=lambda path: path.stat().st_mtime_ns)
    put_bytes(bad, bad.read_bytes()[:-1] + b"\xff")
    backup(directory, copy)
    assert [path.name for path in copy.glob("vectors-*")] == [good.name]
    assert verify(copy, "deep") == []
    good.unlink()
    backup(directory, copy.with_name("second"))
    assert list(copy.with_name("second").glob("vectors-*")) == []
    assert verify(copy.with_name("second"), "deep") == []


@pytest.mark.parametrize("harm", ["cut", "gone", "ahead"])
def test_lexical_files_that_do_not_fit_are_left_out(
    filled: Corpus, directory: Path, copy: Path, sql: Sql, open_corpus: Opener, harm: str
) -> None:
    if harm == "ahead":
        sql(
            "UPDATE setting SET value = 1, crc = ? WHERE key = ?",
            row_crc("generation", "1"),
            "generation",
        )
        sql("UPDATE setting SET value = 0, crc = ? WHERE key = ?", row_crc("floor", "0"), "floor")
    for file in (directory / DIRECTORY).glob("*.term"):
        if harm == "cut":
            file.write_bytes(file.read_bytes()[:-9])
        elif harm == "gone":
            file.unlink()
    backup(directory, copy)
    assert not (copy / DIRECTORY).exists()
    assert {hit.path for hit in open_corpus(copy).search("burrow", mode="lexical")} == paths(copy)
    assert [p.kind for p in verify(copy) if p.kind != "faiss"] == []


def test_what_is_there_already_is_not_touched(
    filled: Corpus, directory: Path, copy: Path, digest: Digest
) -> None:
    copy.mkdir()
    (copy / "mine.txt").write_text("mine")
    with pytest.raises(NotAnIndex, match=r"already holds 'mine.txt'"):
        backup(directory, copy)
    (copy / "mine.txt").rename(copy.with_name("file"))
    with pytest.raises(NotAnIndex, match="is no directory"):
        backup(directory, copy.with_name("file"))
    assert copy.with_name("file").read_text() == "mine" and list(copy.iterdir()) == []
    with pytest.raises(IndexNotFound):
        backup(directory.with_name("nowhere"), copy)


@pytest.mark.parametrize("name", ["copy_stream", "_copy_database", "_finish_database"])
def test_a_full_disk_leaves_the_target_as_it_was(
    filled: Corpus, directory: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(StorageError, match="copy/new: No space left"):
        backup(directory, copy / "new")
    assert not (copy / "new").exists()
    copy.mkdir(exist_ok=True)
    with pytest.raises(StorageError):
        backup(directory, copy)
    assert list(copy.iterdir()) == []


_DIE = """
import os, signal, sys
from pathlib import Path
from ragembed.index import backup as module

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "replace":
    os.replace = die
else:
    setattr(module, sys.argv[3], die)
module.backup(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@POSIX
@pytest.mark.parametrize("moment", ["_copy_database", "copy_stream", "_finish_database", "replace"])
def test_a_killed_backup_is_no_index(
    filled: Corpus, directory: Path, copy: Path, moment: str
) -> None:
    run = subprocess.run([sys.executable, "-c", _DIE, str(directory), str(copy), moment])
    assert run.returncode == -signal.SIGKILL
    assert list(copy.iterdir())
    with pytest.raises(NotAnIndex):
        Store.open(copy)
    with pytest.raises(NotAnIndex, match="cut short"):
        restore(copy, directory.with_name("restored"))
    with pytest.raises(NotAnIndex):
        backup(directory, copy)
    assert not directory.with_name("restored").exists()


# -- restore -----------------------------------------------------------------------------------


@pytest.fixture
def saved(filled: Corpus, directory: Path, copy: Path) -> Path:
    """A backup of six documents; the index has a seventh by now."""
    backup(directory, copy)
    filled.add([Document(id="gnu", text="A gnu has no burrow.")])
    return copy


def test_a_restored_index_is_what_was_saved_with_a_history_of_its_own(
    saved: Path, directory: Path, open_corpus: Opener, digest: Digest
) -> None:
    before = digest(saved)
    place = directory.with_name("a") / "b"
    report = restore(saved, place)
    assert (report.documents, report.replaced, report.rebuilt) == (6, "", ())
    assert report.directory == str(place)
    assert verify(place, "deep") == [] and paths(place) == paths(saved)
    assert history(place) not in ("", history(saved))
    assert digest(saved) == before
    with open_corpus(place) as corpus:
        corpus.add([Document(id="new", text="A new burrow.")])
        assert len(corpus.search("burrow", k=20)) == 7 and corpus.verify().ok
    assert left_over(place) == []


def test_an_index_is_not_replaced_unasked(saved: Path, directory: Path, digest: Digest) -> None:
    before = digest(directory)
    with pytest.raises(InvalidInput, match="--replace"):
        restore(saved, directory)
    with pytest.raises(NotAnIndex):
        restore(saved, directory.parent, replace=True)
    assert digest(directory) == before and "gnu" in paths(directory)


def test_the_index_that_was_there_is_kept(
    saved: Path, directory: Path, open_corpus: Opener
) -> None:
    first = restore(saved, directory, replace=True)
    second = restore(saved, directory, replace=True)
    assert first.replaced != second.replaced
    assert "gnu" in paths(Path(first.replaced)) and "gnu" not in paths(directory)
    assert verify(Path(first.replaced)) == [] and verify(directory) == []
    assert len(open_corpus().search("gnu", mode="lexical")) == 0
    assert left_over(directory) == []


@pytest.mark.parametrize("which", [0, 1])
def test_a_rename_that_fails_leaves_the_old_index(
    saved: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    real, calls = os.rename, []

    def rename(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == which + 1:
            raise OSError(5, "Input/output error")
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError):
        restore(saved, directory, replace=True)
    monkeypatch.undo()
    assert len(calls) > which
    assert "gnu" in paths(directory) and verify(directory) == []
    assert left_over(directory) == []
    assert list(directory.parent.glob("*replaced*")) == []


@POSIX
@pytest.mark.parametrize("replace", [False, True])
def test_what_gets_its_name_is_on_the_disk(
    saved: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    place = directory if replace else directory.with_name("new")
    synced: set[int] = set()
    named: list[Path] = []
    fsync, rename = os.fsync, os.rename

    def remember(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(old: Path, new: Path) -> None:
        if new == place and "new" in old.name:
            assert {path.stat().st_ino for path in (old, *old.rglob("*"))} <= synced
            synced.clear()
            named.append(new)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(os, "rename", check)
    restore(saved, place, replace=replace)
    assert named == [place] and place.parent.stat().st_ino in synced


def test_an_index_in_use_by_a_writer_is_not_replaced(
    saved: Path, directory: Path, digest: Digest
) -> None:
    before = digest(directory)
    with writer_lock(directory), pytest.raises(IndexLocked):  # after a second
        restore(saved, directory, replace=True)
    assert digest(directory) == before and left_over(directory) == []


def test_a_damaged_backup_changes_nothing(saved: Path, directory: Path, digest: Digest) -> None:
    with closing(sqlite3.connect(saved / "ragembed.db")) as connection:
        connection.execute("UPDATE passage SET text = upper(text) WHERE id = 1")
        connection.commit()
    before = digest(directory)
    with pytest.raises(IndexDamaged, match="copy/ragembed.db is damaged .*; nothing was restored"):
        restore(saved, directory, replace=True)
    with pytest.raises(IndexDamaged):
        restore(saved, directory.with_name("new"))
    assert digest(directory) == before
    assert not directory.with_name("new").exists()
    assert left_over(directory) + left_over(directory.with_name("new")) == []


@pytest.mark.parametrize("harm", ["flip", "gone"])
def test_damaged_derived_files_of_a_backup_are_built_again(
    saved: Path, directory: Path, put_bytes: Callable[[Path, bytes], None], harm: str
) -> None:
    for file in [*saved.glob("vectors-*"), *(saved / DIRECTORY).glob("*.idx")]:
        if harm == "flip":
            put_bytes(file, file.read_bytes()[:-1] + b"\xff")
        else:
            file.unlink()
    place = directory.with_name("new")
    assert restore(saved, place).rebuilt == ("faiss", "lexical")
    assert verify(place, "deep") == [] and len(list(place.glob("vectors-*"))) == 1


def test_any_index_directory_will_do(filled: Corpus, directory: Path, digest: Digest) -> None:
    """With a log that was not folded in."""
    with closing(sqlite3.connect(directory / "ragembed.db")) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        row = ("scratch", "x", row_crc("scratch", "x"))
        connection.execute("INSERT INTO setting VALUES (?, ?, ?)", row)
        connection.commit()
        assert (directory / "ragembed.db-wal").stat().st_size
        (directory / "notes.txt").write_text("not of the index")
        place = directory.with_name("new")
        assert restore(directory, place).documents == 6
    with closing(Store.open(place)) as store:
        assert store.setting("scratch") == "x"
    assert not (place / "notes.txt").exists()
    assert verify(place, "deep") == []


def test_a_backup_of_an_older_format_is_brought_up_to_date(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parent / "formats" / "format-1.tar.gz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    (old,) = [path.parent for path in (tmp_path / "old").rglob("ragembed.db")]
    assert schema.stored_format(old) == 1
    place = tmp_path / "new"
    assert restore(old, place).documents > 0
    assert schema.stored_format(old) == 1 and schema.stored_format(place) == schema.FORMAT
    assert verify(place) == []


def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFound):
        restore(tmp_path / "nowhere", tmp_path / "new")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").touch()
    with pytest.raises(NotAnIndex):
        restore(tmp_path / "some", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_lock_that_was_moved_aside_is_not_taken(
    saved: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is replaced between opening the lock file and locking it."""
    real = lock._locked
    seen = []

    def late(file: Any) -> bool:
        if not seen:
            seen.append(file)
            with monkeypatch.context() as patch:
                patch.setattr(lock, "_locked", real)
                restore(saved, directory, replace=True)
        return real(file)

    monkeypatch.setattr(lock, "_locked", late)
    with Writer(directory), pytest.raises(IndexLocked):
        with Writer(directory, patience=0.0):
            pass


def test_two_writers_cannot_meet_in_a_restored_index(saved: Path, directory: Path) -> None:
    restore(saved, directory, replace=True)
    with Writer(directory) as writer, pytest.raises(IndexLocked):
        assert writer.store.counts()[0] == 6
        with Writer(directory, patience=0.0):
            pass


def test_a_backup_does_not_lie_inside_the_index(filled: Corpus, directory: Path) -> None:
    for inside in (directory, directory / "copies"):
        with pytest.raises(InvalidInput, match="inside the index"):
            backup(directory, inside)
    assert not (directory / "copies").exists()


ANIMALS = ("aardvark", "badger", "capybara", "dormouse", "echidna", "fossa")


def test_an_open_reader_goes_over_to_the_restored_index(
    filled: Corpus, directory: Path, tmp_path: Path, open_corpus: Callable[..., Corpus]
) -> None:
    backup(directory, tmp_path / "saved")
    filled.add([Document(id=f"late{n}", text=f"A late burrow {n}.") for n in range(9)])
    reader = open_corpus()
    assert len(reader.search("late", k=20, mode="lexical")) == 9
    restore(tmp_path / "saved", directory, replace=True)
    done: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: done.append(len(reader.search("late", k=20, mode="lexical"))),
            daemon=True,
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [0, 0, 0, 0]
    assert {document.path for document in reader.documents()} == {a.encode() for a in ANIMALS}
    reader.add([Document(id="new", text="A new burrow.")])
    assert reader.search("new", mode="lexical")[0].path == "new"
    assert reader.verify().ok
