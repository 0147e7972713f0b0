"""Beyond a plain scan: which index is built, that it finds what a scan finds, and when it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ragembed import Corpus, Document
from ragembed.config import IndexConfig
from ragembed.errors import InvalidInput
from ragembed.index import ann, checkpoint
from ragembed.index.rows import Checkpoint, StoredModel
from ragembed.index.vectors import VectorIndex

D = 32
N = 4000
HALF = StoredModel(1, "fake", "fake-1", D, "float16")
WHOLE = StoredModel(1, "fake", "fake-1", D, "float32")


def unit(n: int, seed: int = 0) -> NDArray[np.float32]:
    array = np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)
    array = array / np.linalg.norm(array, axis=1, keepdims=True)
    return array.astype(np.float16).astype(np.float32)  # as they come out of the database


VECTORS = unit(N)
IDS = np.arange(N) * 3 + 5


def parts() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    for first in range(0, N, 700):
        yield IDS[first : first + 700], VECTORS[first : first + 700]


def built(kind: str, model: StoredModel = HALF) -> VectorIndex:
    segment = ann.build(model, kind, N, parts, None).segment
    return VectorIndex(D, model.precision, (segment,))


def exact(
    query: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None = None
) -> list[int]:
    chosen = np.ones(N, dtype=bool) if allowed is None else np.isin(IDS, allowed)
    scores = np.where(chosen, VECTORS @ query, -9.0)
    order = np.lexsort((IDS, -scores))[: min(k, int(chosen.sum()))]
    return IDS[order].tolist()


def test_the_kind_follows_the_size() -> None:
    assert ann.choose(10, HALF) == ann.choose(ann.FLAT_LIMIT, HALF) == "SQfp16"
    assert ann.choose(10, WHOLE) == "Flat"
    assert ann.choose(1_000_000, HALF) == "IVF8192,SQfp16"
    assert ann.choose(1_000_000, WHOLE) == "IVF8192,Flat"
    assert ann.choose(10**10, HALF) == "IVF65536,SQfp16"


@pytest.mark.parametrize(("kind", "model"), [("SQfp16", HALF), ("Flat", WHOLE)])
def test_the_default_is_exact(kind: str, model: StoredModel) -> None:
    index = built(kind, model)
    assert index.exact
    for query in unit(5, 1):
        ids, scores = index.search(query, 20)
        assert ids.tolist() == exact(query, 20)
        np.testing.assert_allclose(scores, VECTORS[(ids - 5) // 3] @ query, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["IVF64,SQfp16", "IVF64,Flat", "IVF64,SQ8", "HNSW32,SQ8", "HNSW32", "SQ8"]
)
def test_others_find_nearly_all(kind: str) -> None:
    index = built(kind)
    queries = unit(40, 1)
    found = [set(index.search(q, 40)[0].tolist()) & set(exact(q, 10)) for q in queries]
    assert sum(map(len, found)) >= 0.97 * 400
    assert index.exact == (kind in ("IVF64,SQfp16", "IVF64,Flat"))


@pytest.mark.parametrize("kind", ["SQfp16", "IVF64,SQfp16", "IVF512,SQfp16"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.15])
def test_a_filtered_search_equals_brute_force(kind: str, share: float) -> None:
    index = built(kind)
    allowed = np.sort(np.random.default_rng(3).choice(IDS, max(1, int(share * N)), replace=False))
    for query in unit(10, 2):
        assert index.search(query, 10, allowed)[0].tolist() == exact(query, 10, allowed)


def test_a_wide_filter_looks_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "_PROBES", 4)
    index = built("IVF64,SQfp16")
    seen = []
    real = ann.faiss.SearchParametersIVF

    def record(**settings: Any) -> Any:
        seen.append(settings["nprobe"])
        return real(**settings)

    monkeypatch.setattr(ann.faiss, "SearchParametersIVF", record)
    query = unit(1)[0]
    index.search(query, 10)
    index.search(query, 500)
    index.search(query, 10, IDS[: N // 2])
    index.search(query, 10, IDS[: N // 10])
    assert seen == [4, 8, 8, 64]


def test_dead_vectors_are_not_found_in_lists() -> None:
    index = built("IVF64,SQfp16").without(IDS[::2])
    for query in unit(10, 2):
        assert index.search(query, 10)[0].tolist() == exact(query, 10, IDS[1::2])
    assert sorted(index.ids().tolist()) == IDS.tolist()


def test_training_is_kept_until_the_vectors_have_outgrown_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = ann.build(HALF, "IVF64,SQfp16", N, parts, None)
    assert first.trained == N
    trained = []
    monkeypatch.setattr(ann, "_train", lambda *_: trained.append(1))
    again = ann.build(HALF, "IVF64,SQfp16", N, parts, first)
    assert (again.trained, trained) == (N, [])
    index = VectorIndex(D, "float16", (again.segment,))
    query = unit(1, 8)[0]
    assert index.search(query, 5)[0].tolist() == exact(query, 5)
    assert (
        not ann.retrain_due(N, N) and ann.retrain_due(N, 2 * N + 1) and ann.retrain_due(N, N // 3)
    )


def test_uneven_lists_are_trained_again() -> None:
    """What came since lies so far from what was trained on that it all falls into a few lists."""

    def near(center: int, rows: slice) -> NDArray[np.float32]:
        array = VECTORS[center] + 0.1 * VECTORS[rows]
        unit_length: NDArray[np.float32] = array / np.linalg.norm(array, axis=1, keepdims=True)
        return unit_length

    def before() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        yield IDS[:2000], near(0, slice(2000))

    def after() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        yield from before()
        yield IDS[2000:], near(1, slice(2000, N))

    narrow = ann.build(HALF, "IVF64,SQfp16", 2000, before, None)
    rebuilt = ann.build(HALF, "IVF64,SQfp16", N, after, narrow)
    assert rebuilt.trained == N
    assert rebuilt.segment.index.invlists.imbalance_factor() < 2


def test_an_index_with_lists_survives_its_file(tmp_path: Path) -> None:
    made = ann.build(HALF, "IVF64,SQfp16", N, parts, None)
    size, digest = checkpoint.save(made.segment.index, tmp_path, "vectors-1.faiss")
    known = Checkpoint(
        "vectors-1.faiss",
        size,
        digest,
        N,
        int(IDS[-1]),
        1,
        made.kind,
        made.trained,
        made.segment.probes,
    )
    for owned in (False, True):
        index = checkpoint.load(tmp_path, known, HALF, owned=owned)
        assert index is not None and index.exact
        for query in unit(5, 4):
            assert index.search(query, 10)[0].tolist() == exact(query, 10)


@pytest.mark.parametrize("kind", ["", "Nonsense", "IDMap,Flat", "PCA8,Flat", "IVF8", "PQ4x4"])
def test_a_factory_string_is_checked(kind: str) -> None:
    if kind in ("", "IVF8"):
        kind += "???"
    with pytest.raises(InvalidInput, match="factory|FAISS cannot build"):
        ann.check_factory(kind, D)


@pytest.mark.parametrize("factory", ["HNSW16,SQ8", "SQ8", "IVF4,SQ8"])
def test_a_chosen_index_is_built_again_and_again(
    open_corpus: Callable[..., Corpus], factory: str
) -> None:
    """What was trained once is taken up again where that is possible, and trained anew elsewhere."""
    corpus = open_corpus(index=IndexConfig(faiss=factory))
    for n in range(4):
        corpus.add([Document(id=f"d{n}-{i}", text=f"word{n} burrow {i}") for i in range(20)])
    corpus.compact()
    assert len(corpus.search("burrow", k=100, mode="dense")) == 80
    assert corpus.verify().ok


def test_too_few_vectors_for_a_chosen_index_are_scanned(
    open_corpus: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = open_corpus(index=IndexConfig(faiss="IVF16,Flat"))
    corpus.add([Document(id=f"d{n}", text=f"word{n} burrow") for n in range(3)])
    assert "a scan of all is used" in caplog.text
    assert len(corpus.search("burrow", mode="dense")) == 3
    corpus.add([Document(id=f"e{n}", text=f"more{n} burrow") for n in range(60)])
    with corpus.reading() as store:
        model = store.model()
        assert model is not None and store.checkpoints(model.id)[0].kind == "IVF16,Flat"


@pytest.mark.parametrize("factory", ["HNSW16,SQ8", "IVF4,SQ8", "IVF4,SQfp16", "SQ8", "Flat"])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_corpus_may_choose_its_index(
    open_corpus: Callable[..., Corpus],
    directory: Path,
    factory: str,
    precision: Any,
) -> None:
    """Scores are the cosines of the stored vectors whatever FAISS holds."""
    corpus = open_corpus(index=IndexConfig(faiss=factory, precision=precision))
    corpus.add([Document(id=f"d{n}", text=f"word{n} burrow {n % 5}") for n in range(60)])
    with corpus.reading() as store:
        model = store.model()
        assert model is not None and model.precision == precision
        assert [known.kind for known in store.checkpoints(model.id)] == [factory]
    plain = open_corpus(directory.parent / "plain", index=IndexConfig(precision=precision))
    plain.add([Document(id=f"d{n}", text=f"word{n} burrow {n % 5}") for n in range(60)])
    for query in ("word7 burrow", "burrow 3"):
        one = [(hit.path, hit.dense) for hit in corpus.search(query, k=5, mode="dense")]
        other = [(hit.path, hit.dense) for hit in plain.search(query, k=5, mode="dense")]
        assert [path for path, _ in one] == [path for path, _ in other]
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], atol=1e-6)
    assert corpus.verify("deep").ok
    corpus.delete(["d7"])
    assert corpus.search("word7", k=60, mode="dense").hits[0].path != "d7"


def test_a_wrong_factory_stores_nothing(open_corpus: Callable[..., Corpus]) -> None:
    corpus = open_corpus(index=IndexConfig(faiss="HNSW,what"))
    with pytest.raises(InvalidInput, match="FAISS cannot build"):
        corpus.add([Document(id="a", text="burrow")])
    assert corpus.documents() == []
