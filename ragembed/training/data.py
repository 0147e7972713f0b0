"""Batches for a language model: windows over a long text, each with the token that comes next.

A window of L tokens and its target overlap in all but one place: the target is the window one token
further on. The text is kept once, as one tensor; windows are slices of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ragembed.errors import InvalidInput

TokenIds = Tensor | NDArray[np.integer[Any]] | Sequence[int]

SHUFFLED_AT_ONCE = 4_096  # numbers of windows that are Python objects at a time


class TokenWindows(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of input and target, both of `max_length` tokens; pair n starts at n * stride.

    What is left at the end of the text and fills no pair is not used.

    Args:
        ids: (n,) integers of any width. A tensor or array is not copied, so it may be a memory map;
            one of int64 is sliced without a copy, a narrower one is widened a window at a time.
        max_length: tokens of a window.
        stride: tokens from the start of one window to that of the next; `max_length` gives windows
            without overlap, more leaves tokens out.

    Raises:
        InvalidInput: the ids are no single row of integers, too few for one pair, or read-only; or
            a length below 1.

    >>> first, second = TokenWindows([40, 367, 2885, 1464, 1807, 3619], max_length=4, stride=1)
    >>> first[0].tolist(), first[1].tolist()
    ([40, 367, 2885, 1464], [367, 2885, 1464, 1807])
    """

    def __init__(self, ids: TokenIds, *, max_length: int, stride: int) -> None:
        for name, value in (("max_length", max_length), ("stride", stride)):
            if value < 1:
                raise InvalidInput(f"{name} is {value}; it must be at least 1")
        self.ids = _row(ids)
        self.max_length = max_length
        self.stride = stride
        if len(self.ids) <= max_length:
            raise InvalidInput(
                f"the text has {len(self.ids):,} tokens; a window of {max_length} and its target "
                f"need {max_length + 1}: give a longer text or a smaller max_length"
            )

    def __len__(self) -> int:
        # The last window starts so that one more token follows it.
        return (len(self.ids) - self.max_length - 1) // self.stride + 1

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """Pair n: two int64 tensors of shape (max_length,)."""
        if not 0 <= n < len(self):
            raise IndexError(f"there is no window {n}; there are {len(self)}")
        start = n * self.stride
        both = self.ids[start : start + self.max_length + 1].long()
        return both[:-1], both[1:]


def token_windows(
    ids: TokenIds,
    *,
    batch_size: int,
    max_length: int,
    stride: int | None = None,
    shuffle: bool = False,
    drop_last: bool = False,
    seed: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of windows over token ids: (inputs, targets), int64, (batch_size, max_length) each.

    Args:
        ids: see `TokenWindows`.
        batch_size: windows in a batch.
        max_length: tokens of a window.
        stride: tokens from the start of one window to that of the next; None is `max_length`.
        shuffle: another order in every pass; the same ones for the same seed.
        drop_last: leave out the last batch of a pass if it is smaller than the others.
        seed: of the shuffle.

    Raises:
        InvalidInput: as `TokenWindows`, or if `drop_last` would leave no batch at all.

    >>> inputs, targets = next(iter(token_windows(range(10), batch_size=2, max_length=4)))
    >>> inputs.tolist(), targets.tolist()
    ([[0, 1, 2, 3], [4, 5, 6, 7]], [[1, 2, 3, 4], [5, 6, 7, 8]])
    """
    if batch_size < 1:
        raise InvalidInput(f"batch_size is {batch_size}; it must be at least 1")
    windows = TokenWindows(
        ids, max_length=max_length, stride=max_length if stride is None else stride
    )
    if drop_last and len(windows) < batch_size:
        raise InvalidInput(
            f"the text gives {len(windows)} windows and a batch takes {batch_size}: with drop_last "
            f"nothing is left; make the batch smaller"
        )
    return DataLoader(
        windows,
        batch_size=batch_size,
        sampler=_Shuffled(len(windows), seed) if shuffle else None,
        drop_last=drop_last,
    )


class _Shuffled(Sampler[int]):
    """0 to count - 1 in an order that only the seed and the number of the pass decide.

    torch's own sampler makes a list of Python integers of the whole order, which is five times the
    memory.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.count, generator=self.generator)
        for start in range(0, self.count, SHUFFLED_AT_ONCE):
            yield from order[start : start + SHUFFLED_AT_ONCE].tolist()


def _row(ids: TokenIds) -> Tensor:
    """The ids as one row of integers, not copied unless they are Python integers."""
    if isinstance(ids, np.ndarray) and not ids.flags.writeable:
        raise InvalidInput(
            "the ids are read-only, which torch does not take: open a memory map with mode='c'"
        )
    try:
        # torch takes an empty list for floats.
        row = torch.as_tensor(ids) if len(ids) else torch.empty(0, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"the ids are no row of integers ({error}); give one") from None
    if row.ndim != 1 or row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
        kind = str(row.dtype).removeprefix("torch.")
        raise InvalidInput(
            f"the ids are {kind} of shape {tuple(row.shape)}; give one row of integers"
        )
    return row
