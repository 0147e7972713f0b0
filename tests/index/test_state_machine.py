"""Any order of changes: the index always holds exactly what a plain dictionary says."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ragembed import Corpus, Document, reembed
from ragembed.config import ChunkingConfig
from ragembed.errors import ModelMismatch
from ragembed.index import checkpoint
from ragembed.index.analysis import terms
from ragembed.index.commit import Writer
from ragembed.index.lexical import DIRECTORY, LexicalIndex
from ragembed.index.transaction import Transaction

NAMES = st.sampled_from([f"{letter}.txt" for letter in "abcdef"])
FOLDERS = st.sampled_from(["", "x", "x/y"])
IDS = st.sampled_from(["one", "two", "three", "a.txt"])
LENGTHS = st.sampled_from([1, 1, 1, 40])  # words beside the mark; 40 make several windows
CHUNKING = ChunkingConfig(passage=32, window=8, overlap=2)
DIMENSIONS = {"fake-1": 16, "fake-2": 24, "fake-3": 8}
# Where a writer may stop for ever; at the first what it was about to store is not stored.
CRASHES = (
    (Transaction, "put_document"),
    (Writer, "_follow"),
    (LexicalIndex, "apply"),
    (Writer, "sweep_vectors"),
    (Transaction, "sweep_vectors"),
    (Writer, "checkpoint"),
    (checkpoint, "save"),
    (Transaction, "catalogue"),
    (Writer, "sweep_files"),
)


class Crash(BaseException):
    """The process is gone."""


@contextmanager
def crash(owner: Any, name: str, *, after: bool) -> Iterator[list[bool]]:
    """A writer that stops at a place, before or after what it does there, and does nothing more: no log
    is folded in, tantivy is not closed. Yields whether it came there."""
    real, came = getattr(owner, name), list[bool]()

    def stop(*arguments: Any, **named: Any) -> None:
        came.append(True)
        if after:
            real(*arguments, **named)
        raise Crash

    def nothing(_: Writer) -> None:
        pass

    with (
        patch.object(Writer, "_fold_log", nothing),
        patch.object(Writer, "_close_lexical", nothing),
    ):
        with patch.object(owner, name, stop), suppress(Crash):
            yield came


class Oracle(RuleBasedStateMachine):
    """`texts` and `files` are what the index ought to hold, as the mark of each document.

    A mark is a word that was never used before, so that a search for it finds one document or none.
    """

    def __init__(self, doubles: ModuleType, base: Path) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=base))
        self.folder = self.home / "files"
        self.folder.mkdir()
        self.embedders: dict[str, Any] = {
            name: doubles.FakeEmbedder(dimension, name) for name, dimension in DIMENSIONS.items()
        }
        self.embedder = self.embedders["fake-1"]
        self.previous = ""  # fingerprint of the model that a rollback goes back to
        self.has_model = False  # which the first document brings
        self.corpus = self.opened()
        self.texts: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.on_disk: dict[str, str] = {}
        self.dead: list[str] = []
        self.serial = 0
        self.synced = False
        self.spoilt = False  # a file of the model before is lost, which no writer looks for
        self.looks = 0

    @initialize()
    def begin(self) -> None:
        self.reader = self.opened()  # never closed and opened again: it has to notice everything

    def opened(self, **settings: Any) -> Corpus:
        return Corpus(self.home / "index", encoder=self.embedder, chunking=CHUNKING, **settings)

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
        self.has_model = True

    @rule(ids=st.lists(IDS, max_size=3, unique=True))
    def delete_texts(self, ids: list[str]) -> None:
        known = [id for id in ids if id in self.texts]
        assert self.corpus.delete(ids) == len(known)
        self.dead += [self.texts.pop(id) for id in known]

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.texts)))
        assert self.corpus.remove([id], purge=True) == 1
        mark = self.texts.pop(id)
        self.dead.append(mark)
        files = [file for file in (self.home / "index").rglob("*") if file.is_file()]
        assert not [file.name for file in files if mark.encode() in file.read_bytes()]
        with self.corpus._with_searcher().snapshot() as now:
            assert [now.document_frequency(term) for term in terms(mark, "english")] == [0]

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
        self.synced = True
        self.has_model = self.has_model or bool(self.files)

    @precondition(lambda self: self.synced)
    @rule()
    def move_the_folder(self) -> None:
        self.serial += 1
        old, self.folder = self.folder, self.home / f"files{self.serial}"
        old.rename(self.folder)
        self.corpus.close()
        self.corpus = self.opened(roots={str(old): str(self.folder)})
        assert [root.path for root in self.corpus.roots()] == [os.fsencode(self.folder)]
        self.sync()
        self.corpus.close()
        self.corpus = self.opened()
        assert [root.path for root in self.corpus.roots()] == [os.fsencode(self.folder)]

    # -- models and space ----------------------------------------------------------------------

    def answered_by(self, fingerprint: str) -> None:
        """The index has another model; who insists on the old one is told so."""
        if fingerprint != self.embedder.fingerprint:
            with pytest.raises(ModelMismatch):
                self.reader.search("mark", mode="dense")
            self.previous = self.embedder.fingerprint
        self.embedder = self.embedders[fingerprint]
        self.reader.close()
        self.reader = self.opened()
        assert self.corpus.status().model.fingerprint == fingerprint

    @precondition(lambda self: self.has_model)
    @rule(fingerprint=st.sampled_from(sorted(DIMENSIONS)), batch=st.sampled_from([1, 3, 256]))
    def reembed(self, fingerprint: str, batch: int) -> None:
        with patch.object(reembed, "_BATCH", batch):
            self.corpus.reembed(encoder=self.embedders[fingerprint])
        self.answered_by(fingerprint)

    @precondition(lambda self: self.previous)
    @rule()
    def rollback(self) -> None:
        self.corpus.rollback(encoder=self.embedders[self.previous])
        self.answered_by(self.previous)

    @precondition(lambda self: self.has_model)
    @rule()
    def forget_models(self) -> None:
        self.corpus.forget_models()
        self.previous = ""
        with self.corpus.reading() as store:
            assert [model.fingerprint for model in store.models()] == [self.embedder.fingerprint]

    @rule()
    def compact(self) -> None:
        self.corpus.compact()
        with self.corpus.reading() as store:
            assert store.connection.execute("SELECT count(*) FROM stray").fetchone() == (0,)
            assert len(store.models()) == self.has_model + bool(self.previous)

    # -- the process ---------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.corpus.close()
        self.corpus = self.opened()

    @rule()
    def reopen_both(self) -> None:
        """The one who only reads comes first."""
        self.corpus.close()
        self.reader.close()
        self.reader = self.opened()
        self.check(self.reader)
        self.corpus = self.opened()

    @rule(
        where=st.sampled_from(CRASHES), ids=st.lists(IDS, min_size=1, max_size=2, unique=True),
        words=LENGTHS, after=st.booleans(), deletes=st.booleans(),
    )  # fmt: skip
    def crash(
        self, where: tuple[Any, str], ids: list[str], words: int, after: bool, deletes: bool
    ) -> None:
        new = {id: self.new_text(words) for id in ids}
        with crash(*where, after=after) as came:
            if deletes:
                self.corpus.delete(ids)
            else:
                self.corpus.add([Document(id=id, text=text) for id, (_, text) in new.items()])
        self.corpus.close()
        self.corpus = self.opened()
        after_it = {id: mark for id, mark in self.texts.items() if id not in ids}
        if not deletes:
            after_it |= {id: mark for id, (mark, _) in new.items()}
        with self.corpus.reading() as store:
            self.has_model = store.model() is not None
            words_of = {
                d.path: store.source_text(d.id).split()[0] for d in store.documents(texts=True)
            }
        found = {path.decode(): mark for path, mark in words_of.items()}
        # Some of the places are passed before the commit as well, when a writer opens or brings a model.
        allowed = (
            [after_it]
            if not came
            else [self.texts]
            if where == CRASHES[0]
            else [self.texts, after_it]
        )
        assert found in allowed
        self.dead += {*self.texts.values(), *(mark for mark, _ in new.values())} - {*found.values()}
        self.texts = found

    @rule()
    def lose_the_lexical_files(self) -> None:
        shutil.rmtree(self.home / "index" / DIRECTORY, ignore_errors=True)

    @rule()
    def lose_the_checkpoints(self) -> None:
        for file in (self.home / "index").glob("vectors-*"):
            file.unlink()
        self.spoilt = self.spoilt or bool(self.previous)

    # -- what holds at any time ----------------------------------------------------------------

    @invariant()
    def finds_what_it_holds(self) -> None:
        """Each of the two is asked after every second step: so each has to notice two at once."""
        self.looks += 1
        self.check(self.reader if self.looks % 2 else self.corpus)

    def check(self, corpus: Corpus) -> None:
        alive = self.texts | self.files
        marks = {mark: path for path, mark in [*self.texts.items(), *self.files.items()]}
        documents = corpus.documents()
        assert sorted(d.path.decode() for d in documents) == sorted(marks.values())
        for mark, path in [*marks.items()][-2:]:
            (hit,) = corpus.search(mark, mode="lexical")
            assert (hit.path, hit.text.split()[0]) == (path, mark)
        for mark in self.dead[-2:]:
            assert len(corpus.search(mark, mode="lexical")) == 0
        if alive:
            hits = corpus.search("mark", k=1000, mode="dense")
            assert {hit.text.split()[0] for hit in hits if hit.start == 0} == set(marks)
            self.check_filter(corpus, {d.id for d in documents[self.looks % 3 :: 2]})

    def check_filter(self, corpus: Corpus, chosen: set[int]) -> None:
        """A filter finds what brute force finds over the stored vectors of the chosen documents."""
        query = self.embedder.encode_query(["filler mark"])[0]
        best: dict[int, float] = {}
        with corpus.reading() as store:
            model = store.model()
            assert model is not None
            for passage, data, document in store.connection.execute(
                "SELECT w.passage_id, v.data, p.document_id FROM window w JOIN vector v ON "
                "v.id = w.vector_id JOIN passage p ON p.id = w.passage_id WHERE w.model_id = ?",
                (model.id,),
            ):
                if document in chosen:
                    cosine = float(np.frombuffer(data, "<f2").astype(np.float32) @ query)
                    best[passage] = max(cosine, best.get(passage, -2.0))
        hits = corpus.search("filler mark", k=1000, mode="dense", documents=chosen).hits
        assert [hit.score for hit in hits] == pytest.approx(
            sorted(best.values(), reverse=True), abs=1e-5
        )
        assert {hit.passage_id for hit in hits} == set(best)
        everywhere = corpus.search("filler mark", k=1000, mode="hybrid")
        inside = corpus.search("filler mark", k=1000, mode="hybrid", documents=chosen)
        assert {hit.passage_id for hit in inside} == {
            hit.passage_id for hit in everywhere if hit.document_id in chosen
        }

    def teardown(self) -> None:
        self.corpus.sync(self.folder, allow_mass_delete=True)
        if self.spoilt:
            self.corpus.repair()
        problems = self.corpus.verify().problems
        self.corpus.close()
        self.reader.close()
        shutil.rmtree(self.home)
        assert problems == (), problems


def test_the_index_holds_what_it_was_given(doubles: ModuleType, directory: Path) -> None:
    directory.mkdir()
    run_state_machine_as_test(
        lambda: Oracle(doubles, directory),
        settings=settings(
            max_examples=int(os.environ.get("RAGEMBED_EXAMPLES", "15")),
            stateful_step_count=20,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # shrinking takes minutes; tests/soak/state_machine.py does it
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_oracle_notices_a_lost_document(doubles: ModuleType, directory: Path) -> None:
    directory.mkdir()
    oracle = Oracle(doubles, directory)
    oracle.begin()
    oracle.add_texts(ids=["one", "two"], words=1)
    oracle.check(oracle.reader)
    oracle.corpus.delete(["two"])
    for corpus in (oracle.corpus, oracle.reader):
        with pytest.raises(AssertionError):
            oracle.check(corpus)
    oracle.teardown()
