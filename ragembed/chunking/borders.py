"""Which of the possible cuts are taken, found from the text around them and never by counting.

Counting from the start of a document would move every border behind an edit. Here a cut is chosen
by its strength: its class (paragraph before sentence before line before word before character), then
a hash of the characters that follow it. Splitting a stretch that is too long at its strongest cut,
again and again, takes exactly those cuts that are the strongest within some stretch of bounded size
around them (the shape of a treap: Aragon and Seidel, 1989), so what an edit changes ends where the
next stronger cuts stand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Characters after a cut that its hash looks at.
CONTEXT = 64
# A cut that would leave less than this share of a full piece is taken only where there is no other.
SMALLEST_SHARE = 6
_ROWS = 65_536


def cut(
    sizes: NDArray[np.int64], classes: NDArray[np.int64], hashes: NDArray[np.uint64], limit: int
) -> list[tuple[int, int]]:
    """Group consecutive atoms into pieces of at most `limit`.

    Args:
        sizes: (n,) size of each atom, each at most `limit` (a larger one stands alone).
        classes: (n,) class of the cut before each atom, 0 is the strongest.
        hashes: (n,) hash of the text after that cut.
        limit: most size of a piece.

    Returns:
        Ranges [first, last) of atoms, in order, that together hold them all.

    >>> cut(np.array([5, 5, 5, 5]), np.array([0, 1, 0, 1]), np.zeros(4, np.uint64), 10)
    [(0, 2), (2, 4)]
    """
    ends = np.cumsum(sizes)  # size of atoms 0..i
    # Class first, then hash. Equal strength stays equal: in text that repeats itself the tie falls
    # to the middle.
    strength = (classes.astype(np.uint64) << np.uint64(61)) | (hashes >> np.uint64(3))
    pieces: list[tuple[int, int]] = []
    stack = [(0, len(sizes))] if len(sizes) else []
    while stack:
        first, last = stack.pop()
        before = int(ends[first] - sizes[first])
        total = int(ends[last - 1]) - before
        if total <= limit or last - first == 1:
            pieces.append((first, last))
            continue
        left = ends[first : last - 1] - before  # size left of each inner cut
        inner = strength[first + 1 : last]
        off_middle = np.where(
            inner == inner.min(), np.abs(2 * left - total), np.iinfo(np.int64).max
        )
        at = first + 1 + int(np.argmin(off_middle))
        stack += [(at, last), (first, at)]  # the left part is finished first: pieces stay in order
    return pieces


def context_hashes(
    code_points: NDArray[np.uint32], starts: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """A 64-bit hash of the `CONTEXT` characters from each start on.

    Args:
        code_points: (length,) the document's characters.
        starts: (n,) offsets into it.
    """
    multipliers = np.random.default_rng(20250711).integers(
        1, 2**63, size=CONTEXT, dtype=np.uint64
    ) * np.uint64(2) + np.uint64(1)
    padded = np.concatenate([code_points, np.zeros(CONTEXT, dtype=np.uint32)])
    hashes = np.empty(len(starts), dtype=np.uint64)
    for first in range(0, len(starts), _ROWS):  # bounds the memory of long documents
        rows = starts[first : first + _ROWS]
        windows = padded[rows[:, None] + np.arange(CONTEXT)].astype(np.uint64)  # (rows, CONTEXT)
        mixed = (windows * multipliers).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        hashes[first : first + _ROWS] = mixed ^ (mixed >> np.uint64(32))
    return hashes


def code_points(text: str) -> NDArray[np.uint32]:
    """The characters of a text as numbers, (len(text),); lone surrogates are kept."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
