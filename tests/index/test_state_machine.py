"""Any order of changes: the index always holds exactly what a plain dictionary says."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ragembed import Corpus, Document
from ragembed.config import ChunkingConfig
from ragembed.index.lexical import DIRECTORY

NAMES = st.sampled_from([f"{letter}.txt" for letter in "abcdef"])
FOLDERS = st.sampled_from(["", "x", "x/y"])
IDS = st.sampled_from(["one", "two", "three", "a.txt"])
LENGTHS = st.sampled_from([1, 1, 1, 40])  # words beside the mark; 40 make several windows
CHUNKING = ChunkingConfig(passage=32, window=8, overlap=2)


class Oracle(RuleBasedStateMachine):
    """`texts` and `files` are what the index ought to hold, as the mark of each document.

    A mark is a word that was never used before, so that a search for it finds one document or none.
    """

    def __init__(self, doubles: ModuleType, base: Path) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=base))
        self.folder = self.home / "files"
        self.folder.mkdir()
        self.embedder: Any = doubles.FakeEmbedder()
        self.corpus = self.opened()
        self.texts: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.on_disk: dict[str, str] = {}
        self.dead: list[str] = []
        self.serial = 0
        self.generation = 0

    @initialize()
    def begin(self) -> None:
        self.reader = self.opened()  # never closed and opened again: it has to notice everything

    def opened(self) -> Corpus:
        return Corpus(self.home / "index", encoder=self.embedder, chunking=CHUNKING)

    def new_text(self, words: int) -> tuple[str, str]:
        self.serial += 1
        mark = f"mark{self.serial}q"
        return mark, " ".join([mark, *(f"filler{self.serial}n{n}." for n in range(words))])

    # -- texts ---------------------------------------------------------------------------------

    @rule(ids=st.lists(IDS, min_size=1, max_size=3, unique=True), words=LENGTHS)
    def add_texts(self, ids: list[str], words: int) -> None:
        new = {id: self.new_text(words) for id in ids}
        report = self.corpus.add([Document(id=id, text=text) for id, (_, text) in new.items()])
        known = [id for id in ids if id in self.texts]
        assert (report.updated, report.added) == (len(known), len(ids) - len(known))
        self.dead += [self.texts[id] for id in known]
        self.texts |= {id: mark for id, (mark, _) in new.items()}

    @rule(ids=st.lists(IDS, max_size=3, unique=True))
    def delete_texts(self, ids: list[str]) -> None:
        known = [id for id in ids if id in self.texts]
        assert self.corpus.delete(ids) == len(known)
        self.dead += [self.texts.pop(id) for id in known]

    # -- files ---------------------------------------------------------------------------------

    @rule(folder=FOLDERS, name=NAMES, words=LENGTHS)
    def write(self, folder: str, name: str, words: int) -> None:
        path = f"{folder}/{name}" if folder else name
        mark, text = self.new_text(words)
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, (time.time() - 60, time.time() - 60 + self.serial * 1e-3))
        self.on_disk[path] = mark

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.on_disk)))
        (self.folder / path).unlink()
        del self.on_disk[path]

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data(), folder=FOLDERS, name=NAMES)
    def rename(self, data: st.DataObject, folder: str, name: str) -> None:
        old = data.draw(st.sampled_from(sorted(self.on_disk)))
        new = f"{folder}/{name}" if folder else name
        (self.folder / new).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / old).replace(self.folder / new)
        self.on_disk[new] = self.on_disk.pop(old)

    @rule()
    def sync(self) -> None:
        self.embedder.take_encoded()
        report = self.corpus.sync(self.folder, allow_mass_delete=True)
        assert report.skipped == ()
        seen = report.added + report.updated + report.renamed + report.unchanged
        assert seen == len(self.on_disk)
        moved = set(self.on_disk.values()) & set(self.files.values())
        new = set(self.on_disk.values()) - moved
        encoded = [word for text in self.embedder.take_encoded() for word in text.split()]
        assert not set(encoded) & moved
        assert len(set(encoded) & new) == len(new)
        self.dead += set(self.files.values()) - set(self.on_disk.values())
        self.files = dict(self.on_disk)

    # -- the process ---------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.corpus.close()
        self.corpus = self.opened()

    @rule()
    def lose_the_lexical_files(self) -> None:
        shutil.rmtree(self.home / "index" / DIRECTORY, ignore_errors=True)

    @rule()
    def lose_the_checkpoints(self) -> None:
        for file in (self.home / "index").glob("vectors-*"):
            file.unlink()

    # -- what holds at any time ----------------------------------------------------------------

    @invariant()
    def finds_what_it_holds(self) -> None:
        alive = self.texts | self.files
        marks = {mark: path for path, mark in [*self.texts.items(), *self.files.items()]}
        assert sorted(d.path.decode() for d in self.corpus.documents()) == sorted(marks.values())
        for corpus in (self.corpus, self.reader):
            for mark, path in [*marks.items()][-4:]:
                (hit,) = corpus.search(mark, mode="lexical")
                assert (hit.path, hit.text.split()[0]) == (path, mark)
            for mark in self.dead[-4:]:
                assert len(corpus.search(mark, mode="lexical")) == 0
            if alive:
                hits = corpus.search("mark", k=1000, mode="dense")
                assert {hit.text.split()[0] for hit in hits if hit.start == 0} == set(marks)

    def teardown(self) -> None:
        self.corpus.sync(self.folder, allow_mass_delete=True)
        problems = self.corpus.verify().problems
        self.corpus.close()
        self.reader.close()
        shutil.rmtree(self.home)
        assert problems == ()


def test_the_index_holds_what_it_was_given(doubles: ModuleType, directory: Path) -> None:
    directory.mkdir()
    run_state_machine_as_test(
        lambda: Oracle(doubles, directory),
        settings=settings(
            max_examples=int(os.environ.get("RAGEMBED_EXAMPLES", "15")),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_oracle_notices_a_lost_document(doubles: ModuleType, directory: Path) -> None:
    directory.mkdir()
    oracle = Oracle(doubles, directory)
    oracle.begin()
    oracle.add_texts(ids=["one", "two"], words=1)
    oracle.finds_what_it_holds()
    oracle.corpus.delete(["two"])
    with pytest.raises(AssertionError):
        oracle.finds_what_it_holds()
    oracle.teardown()
