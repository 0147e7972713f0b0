"""The dense leg: exact search over segments, and a checkpoint that is never half trusted."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ragembed.errors import InvalidInput
from ragembed.index import checkpoint as module
from ragembed.index.rows import Checkpoint, StoredModel
from ragembed.index.vectors import MAX_K, MAX_SEGMENTS, VectorIndex, check_vectors

D = 8
NONE = np.zeros(0, dtype=np.int64)
MODEL = StoredModel(1, "fake", "fake-1", D, "float32")
EMPTY = VectorIndex(D, "float32")


def unit(n: int, seed: int = 0) -> NDArray[np.float32]:
    array = np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def index_of(n: int, seed: int = 0) -> VectorIndex:
    return EMPTY.with_changes(np.arange(1, n + 1), unit(n, seed), NONE)


@given(
    sizes=st.lists(st.integers(0, 12), max_size=2 * MAX_SEGMENTS),
    k=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_search_equals_brute_force(sizes: list[int], k: int, share: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    total = sum(sizes)
    array = unit(total, seed)
    array[total // 2 :] = array[: total - total // 2]  # ties: equal vectors under different ids
    ids = np.cumsum(chance.integers(1, 5, size=total))
    dead = np.sort(ids[chance.random(total) < share])
    index, first = EMPTY, 0
    for size in sizes:
        index = index.with_changes(ids[first : first + size], array[first : first + size], NONE)
        first += size
    index = index.with_changes(NONE, np.zeros((0, D), np.float32), dead)
    query = unit(1, seed + 1)[0]

    found, scores = index.search(query, k)

    alive = ~np.isin(ids, dead)
    exact = (array @ query)[alive]
    assert len(found) == len(set(found.tolist())) == min(k, int(alive.sum()))
    assert not set(found.tolist()) & set(dead.tolist())
    np.testing.assert_allclose(scores, np.sort(exact)[::-1][:k], atol=1e-5)
    np.testing.assert_allclose(scores, array[np.searchsorted(ids, found)] @ query, atol=1e-5)
    assert len(index.segments) <= MAX_SEGMENTS
    assert sorted(set(index.ids().tolist()) - set(dead.tolist())) == ids[alive].tolist()
    allowed = ids[chance.random(total) < 0.5]
    found, scores = index.search(query, k, allowed)
    exact = (array @ query)[alive & np.isin(ids, allowed)]
    assert len(found) == min(k, len(exact))
    assert set(found.tolist()) <= set(allowed.tolist()) - set(dead.tolist())
    np.testing.assert_allclose(scores, np.sort(exact)[::-1][:k], atol=1e-5)


def test_a_search_never_returns_the_padding() -> None:
    index = index_of(3).with_changes(NONE, np.zeros((0, D), np.float32), np.array([2]))
    ids, scores = index.search(unit(1)[0], 50)
    assert sorted(ids.tolist()) == [1, 3]
    assert np.isfinite(scores).all()
    assert EMPTY.search(unit(1)[0], 5)[0].tolist() == []
    assert index_of(3).search(unit(1)[0], 5, NONE)[0].tolist() == []


def test_a_changed_index_leaves_the_old_one_as_it_was() -> None:
    old = index_of(5)
    before = old.search(unit(1, 9)[0], 10)
    old.with_changes(np.array([6]), unit(1, 9), np.array([1, 2]))
    after = old.search(unit(1, 9)[0], 10)
    assert before[0].tolist() == after[0].tolist()


def test_what_died_earlier_stays_dead() -> None:
    index, empty = index_of(6), np.zeros((0, D), np.float32)
    for dead in (4, 2, 6):
        index = index.with_changes(NONE, empty, np.array([dead]))
    assert sorted(index.search(unit(1)[0], 6)[0].tolist()) == [1, 3, 5]
    assert index.dead_count == 3


def test_many_small_changes_are_merged() -> None:
    index, array = EMPTY, unit(50)
    for n in range(50):
        index = index.with_changes(np.array([n + 1]), array[n : n + 1], NONE)
        assert len(index.segments) <= MAX_SEGMENTS
    assert index.size == 50
    assert [int(index.search(vector, 1)[0][0]) for vector in array] == list(range(1, 51))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((2, D), np.nan, np.float32), "vector 0"),
        (np.vstack([unit(1), np.full((1, D), np.inf, np.float32)]), "vector 1 of 2"),
        (np.zeros((1, D), np.float32), "squared length 0"),
        (2 * unit(1), "squared length 4"),
        (unit(1)[:, :-1], r"\(1, 7\)"),
        (unit(1)[0], r"\(8,\)"),
    ],
    ids=["nan", "infinite", "zero", "long", "short row", "one dimension"],
)
def test_what_is_no_unit_vector_is_refused(array: NDArray[np.float32], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_vectors(array, D)
    with pytest.raises(InvalidInput):
        EMPTY.with_changes(np.arange(len(array)), array, NONE)


@pytest.mark.parametrize("k", [-1, 0, MAX_K + 1, 10**12])
def test_k_has_bounds(k: int) -> None:
    with pytest.raises(InvalidInput, match="between 1 and"):
        index_of(2).search(unit(1)[0], k)


def test_a_query_of_another_model_is_refused() -> None:
    for query in (np.ones(D + 1, np.float32) / 3, np.full(D, np.nan, np.float32)):
        with pytest.raises(InvalidInput):
            index_of(2).search(query, 1)


def test_other_layouts_are_converted() -> None:
    array = np.asfortranarray(unit(4).astype(np.float64))
    index = EMPTY.with_changes(np.arange(1, 5), array, NONE)  # type: ignore[arg-type]
    assert [int(index.search(vector, 1)[0][0]) for vector in unit(4)] == [1, 2, 3, 4]


# -- the checkpoint file ---------------------------------------------------------------------------


def saved(directory: Path, index: VectorIndex, name: str = "vectors-1.faiss") -> Checkpoint:
    size, digest = module.save(index.segments[0].index, directory, name)
    return Checkpoint(name, size, digest, index.size, int(index.ids().max()), 1, "Flat", 0, 0)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    index = index_of(20)
    checkpoint = saved(tmp_path, index)
    file = tmp_path / checkpoint.file
    assert file.stat().st_size == checkpoint.size
    assert hashlib.sha256(file.read_bytes()).digest() == checkpoint.sha256
    assert file.stat().st_mode & 0o777 == 0o400
    back = module.load(tmp_path, checkpoint, MODEL)
    assert back is not None
    query = unit(1, 5)[0]
    for one, other in zip(index.search(query, 20), back.search(query, 20), strict=True):
        assert one.tolist() == other.tolist()


def test_every_damaged_byte_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved(tmp_path, index_of(3))
    file = tmp_path / checkpoint.file
    file.chmod(0o600)
    good = file.read_bytes()
    parsed = []
    monkeypatch.setattr(faiss, "deserialize_index", parsed.append)
    monkeypatch.setattr(faiss, "read_index", parsed.append)
    for position in range(len(good)):
        for damaged in (
            good[:position] + bytes([good[position] ^ 0x01]) + good[position + 1 :],
            good[:position],
            good + b"\0" * (position + 1),
        ):
            file.write_bytes(damaged)
            assert module.load(tmp_path, checkpoint, MODEL) is None
    file.unlink()
    assert module.load(tmp_path, checkpoint, MODEL) is None
    file.mkdir()
    assert module.load(tmp_path, checkpoint, MODEL) is None
    assert parsed == []  # FAISS never got to see any of it


def test_a_file_that_does_not_fit_its_catalogue_is_not_used(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, index_of(3))
    assert module.load(tmp_path, checkpoint, replace(MODEL, dimension=D + 1)) is None
    fewer = replace(checkpoint, vectors=2)
    assert module.load(tmp_path, fewer, MODEL) is None


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "directory"])
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    saved(tmp_path, index_of(3), "vectors-old.faiss")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "write":

        def writer(write: object) -> object:
            assert (tmp_path / "vectors-new.faiss.tmp").exists()
            return real(full)

        real = faiss.PyCallbackIOWriter
        monkeypatch.setattr(faiss, "PyCallbackIOWriter", writer)
    elif step == "directory":
        monkeypatch.setattr(module, "sync_directory", full)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        module.save(index_of(9).segments[0].index, tmp_path, "vectors-new.faiss")
    left = {path.name for path in tmp_path.iterdir()}
    # After the rename the file is whole, and swept as long as nothing names it.
    assert left - {"vectors-new.faiss"} == {"vectors-old.faiss"}
    assert step == "directory" or left == {"vectors-old.faiss"}
