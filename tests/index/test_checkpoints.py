"""FAISS checkpoints: written when it pays, swept when orphaned, never half trusted."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ragembed import Corpus, Document
from ragembed.errors import StorageError
from ragembed.index import checkpoint, commit
from ragembed.index.commit import Writer

ANSWERS = ("aardvark", "burrow", "lives")


def checkpoint_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("vectors-*"), key=lambda path: path.stat().st_mtime_ns)


def spoil(file: Path, way: str) -> None:
    if way == "deleted":
        file.unlink()
        return
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.chmod(0o600)
    file.write_bytes(bytes(data[:-3] if way == "cut" else data))


def mend(corpus: Corpus, way: str) -> None:
    """Any run of a writer sees that a file is gone or cut; for its content there is `repair`."""
    if way == "flipped":
        assert corpus.repair().rebuilt == ("faiss",)
    else:
        corpus.add([])


@pytest.mark.parametrize("way", ["deleted", "flipped", "cut"])
def test_a_damaged_checkpoint_changes_no_answer_and_is_written_again(
    filled: Corpus,
    directory: Path,
    kinds: Callable[[Corpus], list[str]],
    open_corpus: Callable[..., Corpus],
    way: str,
) -> None:
    answers = [filled.search(query, mode="dense").hits for query in ANSWERS]
    (file,) = checkpoint_files(directory)
    spoil(file, way)
    assert kinds(filled) == ["faiss"]
    assert [open_corpus().search(query, mode="dense").hits for query in ANSWERS] == answers
    mend(filled, way)
    assert kinds(filled) == []
    assert [open_corpus().search(query, mode="dense").hits for query in ANSWERS] == answers


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("way", ["deleted", "flipped"])
def test_either_of_two_checkpoints_may_be_damaged(
    filled: Corpus,
    directory: Path,
    kinds: Callable[[Corpus], list[str]],
    open_corpus: Callable[..., Corpus],
    way: str,
    which: int,
) -> None:
    filled.add([Document(id="gnu", text="A gnu has no burrow.")])
    answers = [filled.search(query, mode="dense").hits for query in ANSWERS]
    files = checkpoint_files(directory)
    assert len(files) == 2
    spoil(files[which], way)
    assert [open_corpus().search(query, mode="dense").hits for query in ANSWERS] == answers
    mend(filled, way)
    assert kinds(filled) == []
    assert [open_corpus().search(query, mode="dense").hits for query in ANSWERS] == answers


def test_a_full_disk_at_the_checkpoint_loses_nothing(
    filled: Corpus,
    directory: Path,
    found: Callable[..., set[str]],
    monkeypatch: pytest.MonkeyPatch,
    open_corpus: Callable[..., Corpus],
) -> None:
    before = checkpoint_files(directory)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(StorageError, match="No space left") as caught:
            filled.add([Document(id="x", text="unusual gnu")])
    assert caught.value.exit_code == 5
    assert checkpoint_files(directory) == before
    assert found(open_corpus(), "gnu") == {"x"}
    assert filled.search("unusual gnu", mode="dense")[0].path == "x"
    assert filled.verify().ok


def test_what_a_crash_left_is_swept(filled: Corpus, directory: Path) -> None:
    keep = checkpoint_files(directory)
    (directory / "vectors-0123.faiss.tmp").write_bytes(b"half")
    (directory / "vectors-4567.faiss").write_bytes(b"whole, but not catalogued")
    with Writer(directory):
        pass
    assert checkpoint_files(directory) == keep


def test_few_changes_write_no_new_checkpoint(
    corpus: Corpus, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.add([Document(id=f"d{n}", text=f"word{n} in a text") for n in range(40)])
    (first,) = checkpoint_files(directory)
    corpus.add([Document(id="late", text="late text")])
    corpus.delete(["d7"])
    assert checkpoint_files(directory) == [first]
    assert corpus.verify().ok
    assert corpus.search("late text", mode="dense")[0].path == "late"
    corpus.delete([f"d{n}" for n in range(8, 13)])
    assert len(checkpoint_files(directory)) == 2
    share = commit.CHECKPOINT_SHARE
    assert 3 / 40 <= share < 7 / 40  # what this test takes for few and for many


def test_old_checkpoints_and_deletions_are_dropped(
    corpus: Corpus, directory: Path, sql: Callable[..., list[Any]]
) -> None:
    for n in range(6):
        corpus.add([Document(id=f"d{n}-{i}", text=f"word{n} of {i}") for i in range(4)])
        corpus.delete([f"d{n}-0"])
        assert corpus.verify().ok
    assert len(checkpoint_files(directory)) == 2
    named = {file for (file,) in sql("SELECT file FROM checkpoint")}
    assert named == {file.name for file in checkpoint_files(directory)}
    (floor,) = sql("SELECT CAST(value AS INTEGER) FROM setting WHERE key = 'floor'")
    assert sql("SELECT min(generation) > ? FROM deletion", *floor)[0][0] in (1, None)
    assert not [name for name in os.listdir(directory) if re.search(r"tmp|new", name)]
