"""Another model for an index: beside the old one until one commit switches, and back again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ragembed import Corpus, Document
from ragembed.config import ChunkingConfig, IndexConfig
from ragembed.errors import InvalidInput, ModelMismatch

CHUNKING = ChunkingConfig(passage=32, window=8, overlap=2)
WORDS = ("aardvark", "badger", "capybara", "dormouse")


@pytest.fixture(scope="module")
def doubles() -> ModuleType:
    spec = importlib.util.spec_from_file_location("doubles", Path(__file__).parent / "doubles.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def old(doubles: ModuleType) -> Any:
    return doubles.FakeEmbedder(dimension=256)


@pytest.fixture
def new(doubles: ModuleType) -> Any:
    """Another space, with another dimension."""
    return doubles.FakeEmbedder(dimension=192, fingerprint="fake-2")


@pytest.fixture
def corpus(tmp_path: Path, old: Any) -> Iterator[Corpus]:
    with Corpus(tmp_path / "index", encoder=old, chunking=CHUNKING) as opened:
        opened.add(
            [
                Document(id=w, text=f"The {w} digs. " + " ".join(f"{w}{n}" for n in range(30)))
                for w in WORDS
            ]
        )
        yield opened


def dense(corpus: Corpus) -> list[list[str]]:
    return [[hit.path for hit in corpus.search(word, mode="dense", k=2)] for word in WORDS]


def test_the_other_model_answers_after_the_switch(corpus: Corpus, old: Any, new: Any) -> None:
    windows = corpus.status().windows
    report = corpus.reembed(encoder=new)
    assert (report.passages, report.embedded) == (corpus.status().passages, len(new.encoded))
    assert report.windows == corpus.status().windows == windows
    assert corpus.status().model.dimension == 192
    assert corpus.status().previous == "fake"
    assert [found[0] for found in dense(corpus)] == list(WORDS)
    assert corpus.verify().ok
    old.take_encoded()
    corpus.add([Document(id="late", text="The late gnu.")])
    assert old.take_encoded() == [] and corpus.search("gnu", mode="dense")[0].path == "late"
    assert corpus.verify().ok


def test_a_rollback_encodes_only_what_came_since(corpus: Corpus, old: Any, new: Any) -> None:
    before = dense(corpus)
    corpus.reembed(encoder=new)
    corpus.add([Document(id="late", text="The late gnu.")])
    corpus.delete(["badger"])
    old.take_encoded()
    report = corpus.rollback(encoder=old)
    assert (report.passages, old.take_encoded()) == (1, ["The late gnu."])
    assert corpus.status().model.fingerprint == "fake-1"
    assert dense(corpus)[0][0] == before[0][0]
    assert corpus.search("gnu", mode="dense")[0].path == "late"
    assert corpus.verify().ok
    again = corpus.rollback(encoder=new)  # and forth again
    assert again.passages == 0 and corpus.status().model.fingerprint == "fake-2"
    assert corpus.verify().ok


def test_a_rollback_without_changes_needs_no_model(corpus: Corpus, old: Any, new: Any) -> None:
    corpus.reembed(encoder=new)
    report = corpus.rollback()  # the model "fake" could not be loaded by its name
    assert (report.passages, report.embedded) == (0, 0)
    assert corpus.status().model.fingerprint == "fake-1"


def test_searches_go_on_with_the_old_model_until_the_switch(
    corpus: Corpus, tmp_path: Path, old: Any, new: Any
) -> None:
    before = dense(corpus)
    with Corpus(tmp_path / "index", encoder=old) as reader:
        seen = []

        def look(texts: object) -> None:
            seen.append(dense(reader))

        new.before = look
        corpus.reembed(encoder=new)
        assert seen and all(answers == before for answers in seen)
        with pytest.raises(ModelMismatch):  # it insists on a model that the index has left
            reader.search("badger")


def test_an_interrupted_run_is_gone_on_with(
    corpus: Corpus, old: Any, new: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragembed.reembed._BATCH", 1)
    before = dense(corpus)

    def interrupt(texts: object) -> None:
        if len(new.encoded) > 10:
            raise KeyboardInterrupt

    new.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        corpus.reembed(encoder=new)
    assert corpus.verify().ok
    assert dense(corpus) == before
    done = len(new.take_encoded())
    corpus.add([Document(id="late", text="The late gnu.")])  # the old model's business meanwhile
    corpus.delete(["badger"])
    new.before = None
    corpus.reembed(encoder=new)
    assert 0 < done and len(set(new.encoded)) == len(new.encoded)
    assert [found[0] for found in dense(corpus)][2:] == list(WORDS)[2:]
    assert corpus.search("gnu", mode="dense")[0].path == "late"
    assert corpus.verify().ok


def test_what_cannot_be_done_is_said(tmp_path: Path, corpus: Corpus, old: Any, new: Any) -> None:
    with pytest.raises(InvalidInput, match="no model to go back to"):
        corpus.rollback()
    with pytest.raises(InvalidInput, match="not both"):
        corpus.reembed()
    with Corpus(tmp_path / "empty", encoder=old) as empty:
        with pytest.raises(InvalidInput, match="is empty"):
            empty.reembed(encoder=new)
    corpus.reembed(encoder=new)
    with pytest.raises(ModelMismatch):  # documents that came since need the old model itself
        corpus.add([Document(id="late", text="The late gnu.")])
        corpus.rollback(encoder=new)
    assert corpus.status().model.fingerprint == "fake-2"


def test_a_factory_that_does_not_fit_the_new_model_is_refused_first(
    tmp_path: Path, old: Any, new: Any
) -> None:
    config = IndexConfig(faiss="IVF4,PQ8")  # 8 divides 256 and 192
    with Corpus(tmp_path / "other", encoder=old, chunking=CHUNKING, index=config) as corpus:
        corpus.add([Document(id="a", text="A burrow.")])
        new.dimension = 100
        with pytest.raises(InvalidInput, match="FAISS cannot build"):
            corpus.reembed(encoder=new)
        assert new.encoded == []


def test_the_precision_of_the_stored_vectors_stays(tmp_path: Path, old: Any, new: Any) -> None:
    exact = IndexConfig(precision="float32")
    with Corpus(tmp_path / "other", encoder=old, chunking=CHUNKING, index=exact) as corpus:
        corpus.add([Document(id="a", text="A burrow.")])
    with Corpus(tmp_path / "other", encoder=old, chunking=CHUNKING) as corpus:
        corpus.reembed(encoder=new)
        with corpus.reading() as store:
            assert {model.precision for model in store.models()} == {"float32"}


def test_models_can_be_forgotten(corpus: Corpus, old: Any, new: Any, tmp_path: Path) -> None:
    corpus.reembed(encoder=new)
    files = len(list((tmp_path / "index").glob("vectors-*")))
    assert corpus.forget_models() == 1
    assert len(list((tmp_path / "index").glob("vectors-*"))) < files
    assert corpus.status().previous == ""
    assert [found[0] for found in dense(corpus)] == list(WORDS)
    assert corpus.verify().ok
    with pytest.raises(InvalidInput, match="no model to go back to"):
        corpus.rollback()


def test_compact_keeps_a_model_that_is_being_built(
    corpus: Corpus, new: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragembed.reembed._BATCH", 1)

    def interrupt(texts: object) -> None:
        if len(new.encoded) > 10:
            raise KeyboardInterrupt

    new.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        corpus.reembed(encoder=new)
    new.before = None
    corpus.compact()
    corpus.reembed(encoder=new)
    assert len(set(new.encoded)) == len(new.encoded)
    assert corpus.verify().ok


def test_compact_keeps_the_two_models_in_play(
    corpus: Corpus, doubles: ModuleType, old: Any, new: Any
) -> None:
    third = doubles.FakeEmbedder(dimension=128, fingerprint="fake-3")
    corpus.reembed(encoder=new)
    corpus.reembed(encoder=third)
    corpus.compact()
    with corpus.reading() as store:
        assert [model.fingerprint for model in store.models()] == ["fake-2", "fake-3"]
    assert corpus.verify().ok
    assert corpus.rollback(encoder=new).passages == 0


def test_deleted_documents_leave_vectors_of_no_model(corpus: Corpus, old: Any, new: Any) -> None:
    corpus.reembed(encoder=new)
    corpus.delete(WORDS)
    with corpus.reading() as store:
        assert [store.vector_count(model.id) for model in store.models()] == [0, 0]
    assert corpus.verify().ok


def test_progress_is_reported(corpus: Corpus, new: Any) -> None:
    steps: list[tuple[int, int]] = []
    record: Callable[[Any], None] = lambda step: steps.append((step.windows, step.windows_known))  # noqa: E731
    report = corpus.reembed(encoder=new, listener=record)
    assert steps[-1] == (report.windows, report.windows)
