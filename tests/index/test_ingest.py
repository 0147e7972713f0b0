"""Taking documents in: what is encoded, what is kept when the run is interrupted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ragembed import Corpus, SyncReport, indexer, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "docs"
    for n in range(4):
        put(path / f"a{n}.txt", f"alpha{n} stands in file {n}.")
        put(path / "sub" / f"b{n}.txt", f"beta{n} stands in file {n}.")
    return path


def put(file: Path, text: str, age: float = 60.0) -> None:
    """Write a file that was last changed `age` seconds ago."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    then = time.time() - age
    os.utime(file, (then, then))


def counts(report: SyncReport) -> dict[str, int]:
    """The counts that are not 0."""
    names = ("added", "updated", "renamed", "unchanged", "removed")
    found = {name: getattr(report, name) for name in names} | {"skipped": len(report.skipped)}
    return {name: count for name, count in found.items() if count}


def test_only_new_text_is_encoded(corpus: Corpus, folder: Path, embedder: Any) -> None:
    """Vectors are stored by content: a rename, a copy, an edit elsewhere encode nothing again."""
    paragraphs = [" ".join(f"word{n}x{i}" for i in range(120)) for n in range(30)]
    put(folder / "long.txt", "\n\n".join(paragraphs))
    corpus.sync(folder)
    whole = embedder.take_encoded()
    assert len(whole) > 30

    (folder / "long.txt").rename(folder / "renamed.txt")
    assert counts(corpus.sync(folder))["renamed"] == 1
    shutil.copy2(folder / "renamed.txt", folder / "copy.txt")
    report = corpus.sync(folder)
    assert (report.added, report.embedded) == (1, 0)
    assert report.reused == report.windows > 0
    assert embedder.take_encoded() == []

    paragraphs[15] = paragraphs[15].replace("word15x60", "edited")
    put(folder / "renamed.txt", "\n\n".join(paragraphs))
    report = corpus.sync(folder)
    assert report.updated == 1
    again = embedder.take_encoded()
    assert report.embedded == len(again) <= len(whole) // 4
    assert any("edited" in text for text in again)

    (folder / "copy.txt").unlink()
    put(folder / "renamed.txt", "\n\n".join(paragraphs).replace("edited", "word15x60"))
    corpus.sync(folder)
    assert corpus.verify().ok


def test_the_tokenizer_is_loaded_once(
    folder: Path, open_corpus: Callable[..., Corpus], embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an embedder that has none of its own; loading one takes a tenth of a second."""
    loads: list[bytes] = []
    parse = tokenizer.parse_ranks
    monkeypatch.setattr(tokenizer, "parse_ranks", lambda data: loads.append(data) or parse(data))
    del embedder.tokenizer
    with open_corpus() as without:
        assert counts(without.sync(folder)) == {"added": 8}
    assert len(loads) <= 1


def test_an_error_of_the_reader_thread_reaches_the_caller(
    corpus: Corpus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the reader broke")

    monkeypatch.setattr("ragembed.changes.prepare", broken)
    with pytest.raises(RuntimeError, match="the reader broke"):
        corpus.sync(folder)
    assert corpus.documents() == []
    assert corpus.verify().ok


def test_ctrl_c_keeps_what_was_committed(
    corpus: Corpus, folder: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "BATCH_WINDOWS", 5)
    for n in range(30):
        put(folder / f"c{n:02}.txt", f"gamma{n} stands here.")
    calls: list[Sequence[str]] = []

    def interrupt(texts: Sequence[str]) -> None:
        calls.append(texts)
        if len(calls) == 4:
            raise KeyboardInterrupt

    committed: list[bytes] = []
    embedder.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        corpus.sync(
            folder, listener=lambda step: committed.extend(path for _, path in step.committed)
        )
    kept = {document.path for document in corpus.documents()}
    assert kept == set(committed)
    assert 15 <= len(kept) < 38
    assert corpus.verify().ok
    embedder.before = None
    done = set(embedder.take_encoded())
    report = corpus.sync()
    assert counts(report) == {"added": 38 - len(kept), "unchanged": len(kept)}
    rest = embedder.take_encoded()
    assert not done & set(rest)
    assert len(rest) == report.embedded == 38 - len(kept)
    assert corpus.verify().ok


def test_the_vectors_of_a_long_document_survive_ctrl_c(
    corpus: Corpus, folder: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "BATCH_WINDOWS", 5)
    text = "\n\n".join(" ".join(f"word{n}x{i}" for i in range(120)) for n in range(12))
    shutil.rmtree(folder)
    put(folder / "long.txt", text)
    calls: list[int] = []

    def interrupt(texts: Sequence[str]) -> None:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt

    embedder.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        corpus.sync(folder)
    assert corpus.documents() == []
    embedder.before = None
    assert len(embedder.take_encoded()) == 10
    report = corpus.sync(folder)
    assert report.added == 1
    assert report.windows > 15
    assert len(embedder.take_encoded()) == report.embedded == report.windows - 10
    assert corpus.verify().ok
