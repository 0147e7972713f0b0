"""ragembed.training.data: windows over a text, their targets, batches, the shuffle, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ragembed.errors import InvalidInput
from ragembed.training import data as module
from ragembed.training.data import TokenWindows, token_windows

Pairs = list[tuple[list[int], list[int]]]


def pairs(loader: torch.utils.data.DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> Pairs:
    """Every window of one pass with its target."""
    return [
        (x, y)
        for inputs, targets in loader
        for x, y in zip(inputs.tolist(), targets.tolist(), strict=True)
    ]


@given(
    st.lists(st.integers(0, 50_256), min_size=2, max_size=60),
    st.integers(1, 12),
    st.integers(1, 15),
    st.integers(1, 5),
)
def test_every_full_window_comes_once_with_its_target(
    ids: list[int], max_length: int, stride: int, batch_size: int
) -> None:
    expected = [
        (ids[start : start + max_length], ids[start + 1 : start + max_length + 1])
        for start in range(0, len(ids), stride)
        if start + max_length + 1 <= len(ids)
    ]
    if not expected:
        with pytest.raises(InvalidInput, match=f"{len(ids)} tokens.*need {max_length + 1}"):
            TokenWindows(ids, max_length=max_length, stride=stride)
        return
    windows = TokenWindows(ids, max_length=max_length, stride=stride)
    assert len(windows) == len(expected)
    assert [(x.tolist(), y.tolist()) for x, y in windows] == expected
    loader = token_windows(ids, batch_size=batch_size, max_length=max_length, stride=stride)
    assert pairs(loader) == expected
    sizes = [len(inputs) for inputs, _ in loader]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)


def test_a_text_of_one_window_and_one_token_more_is_enough() -> None:
    assert pairs(token_windows([7, 8, 9], batch_size=4, max_length=2)) == [([7, 8], [8, 9])]
    with pytest.raises(InvalidInput, match="has 2 tokens; a window of 2 and its target need 3"):
        token_windows([7, 8], batch_size=4, max_length=2)


def test_the_last_batch_may_be_left_out() -> None:
    ids = range(14)
    assert len(pairs(token_windows(ids, batch_size=2, max_length=4))) == 3
    kept = token_windows(ids, batch_size=2, max_length=4, drop_last=True)
    assert pairs(kept) == [([0, 1, 2, 3], [1, 2, 3, 4]), ([4, 5, 6, 7], [5, 6, 7, 8])]
    assert len(kept) == 1
    with pytest.raises(InvalidInput, match="3 windows and a batch takes 4"):
        token_windows(ids, batch_size=4, max_length=4, drop_last=True)


def test_the_shuffle_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUFFLED_AT_ONCE", 7)  # more than one block, the last one smaller
    ids = range(101)
    plain = pairs(token_windows(ids, batch_size=8, max_length=4))

    def two_passes(seed: int) -> list[Pairs]:
        torch.manual_seed(int(torch.randint(1_000, ()).item()))  # the global seed plays no part
        loader = token_windows(ids, batch_size=8, max_length=4, shuffle=True, seed=seed)
        return [pairs(loader), pairs(loader)]

    first, second = two_passes(1)
    assert sorted(first) == sorted(second) == sorted(plain)
    assert first != second and plain not in (first, second)
    assert two_passes(1) == [first, second]
    assert two_passes(2)[0] != first
    assert len(token_windows(ids, batch_size=8, max_length=4, shuffle=True)) == 4


def test_windows_are_slices_of_one_tensor() -> None:
    ids = torch.arange(50)
    windows = TokenWindows(ids, max_length=4, stride=3)
    base = ids.untyped_storage().data_ptr()
    x, y = windows[5]
    assert {t.untyped_storage().data_ptr() for t in (x, y, windows.ids)} == {base}
    assert (x.tolist(), y.tolist()) == ([15, 16, 17, 18], [16, 17, 18, 19])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_arrays_and_memory_maps_are_not_copied(dtype: type, tmp_path) -> None:
    path = tmp_path / "ids.bin"
    np.arange(40, dtype=dtype).tofile(path)
    ids = np.memmap(path, dtype=dtype, mode="c")
    windows = TokenWindows(ids, max_length=4, stride=4)
    assert windows.ids.data_ptr() == ids.ctypes.data
    x, y = windows[2]
    assert x.dtype == y.dtype == torch.int64
    assert (x.tolist(), y.tolist()) == ([8, 9, 10, 11], [9, 10, 11, 12])
    with pytest.raises(InvalidInput, match="mode='c'"):
        TokenWindows(np.memmap(path, dtype=dtype, mode="r"), max_length=4, stride=4)


def test_memory_does_not_grow_with_the_windows() -> None:
    ids = torch.zeros(2_000_000, dtype=torch.int32)
    tracemalloc.start()
    loader = token_windows(ids, batch_size=8, max_length=256, stride=1, shuffle=True)
    inputs, _ = next(iter(loader))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert inputs.shape == (8, 256)
    assert len(loader.dataset) == 1_999_744  # type: ignore[arg-type]
    assert peak < 2_000_000  # a list of all numbers would be some 70 MB


@pytest.mark.parametrize("field", ["stride", "max_length", "batch_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_lengths_below_one_are_refused(field: str, value: int) -> None:
    sizes = {"batch_size": 2, "max_length": 4, "stride": 4} | {field: value}
    with pytest.raises(InvalidInput, match=f"{field} is {value}; it must be at least 1"):
        token_windows(range(20), **sizes)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([], "0 tokens"),
        (torch.zeros(3, 4, dtype=torch.int64), r"int64 of shape \(3, 4\)"),
        (torch.zeros(9), "float32"),
        (torch.ones(9, dtype=torch.bool), "bool"),
        (["a", "b"], "no row of integers"),
        ([[1], [1, 2]], "no row of integers"),
        (torch.tensor(3), "no row of integers"),
    ],
)
def test_what_is_no_row_of_ids_is_refused(ids, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        TokenWindows(ids, max_length=4, stride=4)


def test_there_is_no_window_past_the_end() -> None:
    windows = TokenWindows(range(9), max_length=4, stride=4)
    with pytest.raises(IndexError, match="no window 2; there are 2"):
        windows[2]
