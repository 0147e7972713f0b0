"""Whose directory is it: new, ours, somebody else's, from the future, or damaged."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragembed import Corpus, Document
from ragembed.errors import (
    IndexDamaged,
    IndexFailure,
    IndexNotFound,
    IndexVersionError,
    NotAnIndex,
    StorageError,
)
from ragembed.index import schema
from ragembed.index.lexical import DIRECTORY

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file modes")


def test_an_empty_directory_is_an_empty_index(
    directory: Path, open_corpus: Callable[..., Corpus], kinds: Callable[[Corpus], list[str]]
) -> None:
    directory.mkdir()
    corpus = open_corpus()
    assert corpus.documents() == []
    assert corpus.status().documents == 0
    for mode in ("hybrid", "dense", "lexical"):
        assert len(corpus.search("anything", mode=mode)) == 0  # type: ignore[arg-type]
    assert kinds(corpus) == []
    assert len(open_corpus().search("anything")) == 0


def test_a_new_directory_is_made_with_all_above_it(
    tmp_path: Path, open_corpus: Callable[..., Corpus]
) -> None:
    corpus = open_corpus(tmp_path / "a" / "b")
    corpus.add([Document(id="x", text="a word")])
    assert len(open_corpus(tmp_path / "a" / "b").documents()) == 1


def test_nothing_is_made_unasked(directory: Path, open_corpus: Callable[..., Corpus]) -> None:
    with pytest.raises(IndexNotFound):
        open_corpus(create=False)
    assert not directory.exists()


@pytest.mark.parametrize("create", [True, False])
def test_somebody_elses_directory_is_left_alone(
    directory: Path, open_corpus: Callable[..., Corpus], create: bool
) -> None:
    directory.mkdir()
    (directory / "thesis.doc").write_text("mine")
    with pytest.raises(NotAnIndex) as caught:
        open_corpus(create=create)
    assert str(directory) in str(caught.value)
    assert [path.name for path in directory.iterdir()] == ["thesis.doc"]


def test_a_file_in_its_place_is_an_error_that_names_it(
    directory: Path, open_corpus: Callable[..., Corpus]
) -> None:
    directory.write_text("a file")
    with pytest.raises(IndexFailure, match=str(directory)):
        open_corpus()


def test_a_newer_format_is_refused(
    filled: Corpus, sql: Callable[..., list[Any]], open_corpus: Callable[..., Corpus]
) -> None:
    sql(f"PRAGMA user_version = {schema.FORMAT + 1}")
    with pytest.raises(IndexVersionError, match=f"format {schema.FORMAT + 1}.*upgrade"):
        open_corpus()
    with pytest.raises(IndexVersionError):
        filled.add([Document(id="x", text="text")])


def test_another_programs_database_is_refused(
    directory: Path, open_corpus: Callable[..., Corpus]
) -> None:
    directory.mkdir()
    with closing(sqlite3.connect(directory / schema.DATABASE)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    before = (directory / schema.DATABASE).read_bytes()
    with pytest.raises(NotAnIndex, match="application id"):
        open_corpus()
    assert (directory / schema.DATABASE).read_bytes() == before


@pytest.mark.parametrize("size", [100, 5000])
def test_garbage_is_damage(directory: Path, open_corpus: Callable[..., Corpus], size: int) -> None:
    directory.mkdir()
    (directory / schema.DATABASE).write_bytes(b"\xa5" * size)
    with pytest.raises(IndexDamaged) as caught:
        open_corpus()
    assert caught.value.exit_code == 4
    assert schema.DATABASE in str(caught.value)


def test_an_empty_file_in_the_databases_place_is_refused(
    directory: Path, open_corpus: Callable[..., Corpus]
) -> None:
    directory.mkdir()
    (directory / schema.DATABASE).write_bytes(b"")
    with pytest.raises(IndexFailure):
        open_corpus()


def test_what_a_crash_in_creation_leaves_is_no_obstacle(
    directory: Path, open_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            open_corpus()
    assert not schema.exists(directory)
    # Bytes that a torn write may have left, and a journal of them.
    (draft,) = directory.glob(f"{schema.DATABASE}*")
    draft.write_bytes(draft.read_bytes()[:5000])
    draft.with_name(f"{draft.name}-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7")
    corpus = open_corpus()
    corpus.add([Document(id="x", text="a word")])
    assert corpus.verify().ok
    assert len(corpus.search("word", mode="lexical")) == 1


_START = """
import sys, time
from pathlib import Path
from ragembed.corpus import Corpus
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
Corpus(sys.argv[1]).close()
"""


def test_many_processes_may_make_the_same_index(tmp_path: Path) -> None:
    for attempt in range(3):
        directory, signal = tmp_path / f"index-{attempt}", tmp_path / f"go-{attempt}"
        children = [
            subprocess.Popen(
                [sys.executable, "-c", _START, str(directory), str(signal)],
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        signal.touch()
        said = [child.communicate(timeout=60)[1] for child in children]
        assert [child.returncode for child in children] == [0] * 4, said
        with Corpus(directory) as corpus:
            assert corpus.verify().ok


@POSIX
def test_an_index_is_private(tmp_path: Path, open_corpus: Callable[..., Corpus]) -> None:
    directory = tmp_path / "new"
    old = os.umask(0o022)
    try:
        open_corpus(directory).add([Document(id="x", text="a word")])
    finally:
        os.umask(old)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.iterdir()]
    }
    for name, mode in modes.items():
        assert mode & 0o077 == 0, f"{name} has mode {mode:o}"
    assert modes["new"] == modes[DIRECTORY] == 0o700
    assert modes[schema.DATABASE] == modes["LOCK"] == 0o600
    assert [mode for name, mode in modes.items() if name.endswith(".faiss")] == [0o400]


def test_errors_of_the_disk_are_told_from_damage(tmp_path: Path) -> None:
    for error, expected in [
        (OSError(28, "No space left on device", "x"), StorageError),
        (sqlite3.OperationalError("database or disk is full"), StorageError),
        (sqlite3.OperationalError("attempt to write a readonly database"), StorageError),
        (sqlite3.OperationalError("unable to open database file"), StorageError),
        (sqlite3.DatabaseError("database disk image is malformed"), IndexDamaged),
        (sqlite3.DatabaseError("file is not a database"), IndexDamaged),
    ]:
        with pytest.raises(expected), schema.storage_errors(tmp_path):
            raise error
