"""What the tests of the index share: a fast embedder, a filled index, and ways to damage it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ragembed import Corpus, Document

Opener = Callable[..., Corpus]
MEMORY = "/dev/shm"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def doubles() -> ModuleType:
    return _load(Path(__file__).parents[1] / "doubles.py")


@pytest.fixture
def embedder(doubles: ModuleType) -> Any:
    return doubles.FakeEmbedder()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the index of a test is; not there yet. In memory where the system offers that: a commit
    waits for the disk several times, and that is most of what these tests would do."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path / "index"
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="ragembed-test-") as folder:
        yield Path(folder) / "index"


@pytest.fixture
def open_corpus(directory: Path, embedder: Any) -> Iterator[Opener]:
    """Opens the test's index, as often as wanted; all are closed at the end."""
    opened: list[Corpus] = []

    def opener(path: Path = directory, **settings: Any) -> Corpus:
        corpus = Corpus(path, **{"encoder": embedder, **settings})
        opened.append(corpus)
        return corpus

    yield opener
    for corpus in opened:
        corpus.close()


@pytest.fixture
def corpus(open_corpus: Opener) -> Corpus:
    return open_corpus()


ANIMALS = ("aardvark", "badger", "capybara", "dormouse", "echidna", "fossa")


@pytest.fixture
def filled(corpus: Corpus) -> Corpus:
    """An index of six texts, one unusual word each: the id is the word."""
    corpus.add([Document(id=word, text=f"A {word} lives in burrow {word}.") for word in ANIMALS])
    return corpus


@pytest.fixture
def found() -> Callable[..., set[str]]:
    """The paths that a search finds."""

    def paths(corpus: Corpus, query: str, mode: str = "lexical", k: int = 100) -> set[str]:
        return {hit.path for hit in corpus.search(query, k=k, mode=mode)}  # type: ignore[arg-type]

    return paths


@pytest.fixture
def sql(directory: Path) -> Callable[..., list[Any]]:
    """Change the database behind the library's back."""

    def run(statement: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(directory / "ragembed.db")) as connection:
            rows = connection.execute(statement, values).fetchall()
            connection.commit()
        return rows

    return run


@pytest.fixture
def kinds() -> Callable[[Corpus], list[str]]:
    """The kinds of problem that `verify` finds."""
    return lambda corpus: [problem.kind for problem in corpus.verify().problems]


@pytest.fixture
def digest() -> Callable[[Path], dict[str, str]]:
    """Every file below a folder with the hash of its bytes; but for SQLite's list of who reads, and
    an empty log."""

    def digests(folder: Path) -> dict[str, str]:
        contents = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".db-shm"
        }
        return {
            name: hashlib.sha256(content).hexdigest()
            for name, content in contents.items()
            if content or not name.endswith("-wal")
        }

    return digests


@pytest.fixture
def put_bytes() -> Callable[[Path, bytes], None]:
    """Replace a file: one that is mapped into memory must not be written in place."""

    def put(file: Path, content: bytes) -> None:
        draft = file.with_name("draft")
        draft.write_bytes(content)
        draft.replace(file)

    return put
