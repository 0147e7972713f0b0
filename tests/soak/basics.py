"""What all plans, judges and campaigns work with: a place, an index with its embedder, known texts."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ragembed import Corpus
from ragembed.config import ChunkingConfig

CHUNKING = ChunkingConfig(passage=32, window=8, overlap=2)
FIRST, SECOND = "fake-1", "fake-2"
_DIMENSIONS = {FIRST: 16, SECOND: 24}
FORMATS = Path(__file__).parents[1] / "index" / "formats"
# What the index of format 1 held when it was written, and the mark of each text.
FORMAT_1 = {
    f"{file}.md": f"# The {animal}\n\nA {animal} lives in burrow {animal}.\n\n## Food\n\nIt eats "
    f"{animal} food and fruit of the forest, every evening and every morning again.\n"
    for file, animal in (
        ("aardvark", "aardvark"),
        ("capybara", "capybara"),
        ("dormouse", "dormouse"),
        ("echidna", "echidna"),
        ("cat", "fossa"),
    )
} | {
    "badger.md": "# The badger\n\nA badger digs a sett.\n",
    "faq-1": "Passages are cut at headings.",
    "faq-3": "A checkpoint has a tail.",
}
_MARKS = (
    "aardvark",
    "badger",
    "capybara",
    "dormouse",
    "echidna",
    "fossa",
    "headings",
    "checkpoint",
)


def mark_of(text: str) -> str:
    """The word that no other text has: the first one, but for the texts of old formats."""
    if text in FORMAT_1.values():
        return next(mark for mark in _MARKS if mark in text)
    return text.split()[0]


@cache
def embedder(fingerprint: str = FIRST) -> Any:
    """An embedder of tests/doubles.py, one for all: its tokenizer takes a moment to load."""
    return _doubles().FakeEmbedder(_DIMENSIONS[fingerprint], fingerprint)


def opened(index: Path, *, create: bool) -> Corpus:
    """An index, with the embedder whose vectors it says it answers with."""
    corpus = Corpus(index, create=create, encoder=embedder(), chunking=CHUNKING)
    try:
        with corpus.reading() as store:
            model = store.model()
    except BaseException:
        corpus.close()
        raise
    if model is None or model.fingerprint == FIRST:
        return corpus
    corpus.close()
    return Corpus(index, create=False, encoder=embedder(model.fingerprint), chunking=CHUNKING)


def model_of(corpus: Corpus) -> str:
    """The fingerprint of the model that answers, empty where there is none yet."""
    with corpus.reading() as store:
        model = store.model()
    return "" if model is None else model.fingerprint


@cache
def _doubles() -> ModuleType:
    path = Path(__file__).parents[1] / "doubles.py"
    spec = importlib.util.spec_from_file_location("doubles", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run works. `store` holds the index and nothing else, and is what tracers watch."""

    home: Path

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def index(self) -> Path:
        return self.home / "store" / "index"

    @property
    def files(self) -> Path:
        return self.home / "files"

    def clear(self) -> None:
        """An empty place."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.store.mkdir(parents=True)
        self.files.mkdir()

    def become(self, template: Path) -> None:
        """The same as a place that was set aside."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(template, self.home)
