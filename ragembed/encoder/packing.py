"""Texts of different lengths in one batch without padding: their tokens as rows, one behind the other.

Everything but attention works on single tokens and so does not care which text a row belongs to. For
attention the rows of texts of similar length are put side by side in a group, padded to a common
length; the padding exists there only.

Lengths, group sizes and the number of rows are rounded, because the CPU's matrix library compiles a
kernel for every shape it meets and keeps it (about 0.6 MB each): with every length and size as it
comes, memory grew by 3 MB a new batch shape.

Shapes: N rows, H heads, K per head; a group has G texts of at most M tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

# A run of so many rows is worth a kernel of its own length.
LONG_RUN = 512


@dataclass(frozen=True, slots=True)
class Run:
    """Texts of equal length, one behind the other: `count` times `length` rows from `start` on."""

    start: int
    count: int
    length: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.length


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Texts that attention handles together, each padded to `length`.

    Attributes:
        runs: where their rows are.
        count: G, all texts of the runs.
        length: M, at least the longest.
        real: (G, M), 1 = real, 0 = padding; None where nothing is padded.
    """

    runs: tuple[Run, ...]
    count: int
    length: int
    real: Tensor | None

    @property
    def unpadded(self) -> int:
        """So many tokens from the front are padding in no text, as far as the runs tell."""
        shortest = min(run.length for run in self.runs)
        return shortest if shortest < self.length else 0

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (N, 3, H, K) to queries, keys and values of the group, (G, H, M, K) each."""
        _, _, H, K = qkv.shape
        first = self.runs[0]
        if len(self.runs) == 1 and first.length == self.length:  # the rows are it, as they stand
            whole = qkv[first.rows].view(self.count, self.length, 3, H, K)
            q, k, v = whole.permute(2, 0, 3, 1, 4)
            return q, k, v
        padded = qkv.new_empty(3, self.count, H, self.length, K)
        at = 0
        for run in self.runs:
            here = padded[:, at : at + run.count]
            part = qkv[run.rows].view(*run.shape, 3, H, K)
            here[:, :, :, : run.length] = part.permute(2, 0, 3, 1, 4)
            here[:, :, :, run.length :] = 0
            at += run.count
        return padded[0], padded[1], padded[2]

    def put(self, mixed: Tensor, rows: Tensor) -> None:
        """What attention gave the group, (G, H, M, K), to its places in the rows (N, H, K)."""
        at = 0
        for run in self.runs:
            part = mixed[at : at + run.count, :, : run.length].transpose(1, 2)  # (c, L, H, K)
            rows[run.rows].view_as(part).copy_(part)
            at += run.count


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A batch as rows.

    Attributes:
        ids: (N,) token ids; rows beyond the last text's are filled up.
        places: (N,) place of each token in its text, from 0.
        groups: all texts, in the order of their rows.
    """

    ids: Tensor
    places: Tensor
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, pieces: Sequence[Sequence[int]], pad_id: int) -> Packed:
        """Pack lists of token ids, none empty; equal lengths have to stand together.

        >>> packed = Packed.of([[7, 8, 9], [5, 6], [3, 4]], pad_id=0)
        >>> packed.ids[:7].tolist(), packed.places[:7].tolist()
        ([7, 8, 9, 5, 6, 3, 4], [0, 1, 2, 0, 1, 0, 1])
        >>> [(group.count, group.length, len(group.runs)) for group in packed.groups]
        [(3, 8, 2)]
        """
        runs, start = [], 0
        for length, same in groupby(pieces, key=len):
            runs.append(Run(start, sum(1 for _ in same), length))
            start += runs[-1].count * length
        rows = round_rows(start)
        ids = np.full(rows, pad_id, dtype=np.int64)
        places = np.zeros(rows, dtype=np.int64)
        ids[:start] = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
        for run in runs:
            places[run.rows] = np.tile(np.arange(run.length), run.count)
        groups = [
            _group(tuple(similar), length) for length, similar in groupby(runs, key=common_length)
        ]
        return cls(torch.from_numpy(ids), torch.from_numpy(places), tuple(groups))


def _group(runs: tuple[Run, ...], length: int) -> Group:
    lengths = np.repeat([run.length for run in runs], [run.count for run in runs])
    real = None
    if lengths.min() < length:
        real = torch.from_numpy(np.arange(length)[None, :] < lengths[:, None])
    return Group(runs, len(lengths), length, real)


def common_length(run: Run) -> int:
    """The length that texts are padded to inside attention: the next multiple of 8.

    Many texts of one length stay as they are.
    """
    return run.length if run.count * run.length >= LONG_RUN else -(-run.length // 8) * 8


def round_rows(rows: int) -> int:
    """The number of rows a batch is filled up to: a power of two, from 128 on a multiple of 128."""
    if rows > 128:
        return -(-rows // 128) * 128
    return max(16, 1 << (rows - 1).bit_length())
