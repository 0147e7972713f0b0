"""The dense leg: FAISS over unit vectors, as immutable segments.

FAISS checks its arguments with `assert`, which `python -O` removes; so they are checked here. An index
that is being searched is never added to: a change makes a new segment, and a new `VectorIndex`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from ragembed.config import VectorPrecision
from ragembed.errors import InvalidInput
from ragembed.index.ann import Segment, flat_segment

# Flat segments behind the first are merged into one beyond this, so that a search stays a few scans.
MAX_SEGMENTS = 8
MAX_K = 100_000
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class VectorIndex:
    """Vectors by id, by inner product; a value that is replaced, never changed.

    `dead` (m,) are sorted ids that segments still hold but no search may return.
    """

    dimension: int
    precision: VectorPrecision = "float16"
    segments: tuple[Segment, ...] = ()
    dead: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        """Vectors in the segments, dead ones included."""
        return sum(segment.size for segment in self.segments)

    @property
    def dead_count(self) -> int:
        """Vectors that are only waiting to be dropped."""
        return 0 if self.dead is None else len(self.dead)

    @property
    def tail(self) -> int:
        """Vectors behind the first segment, and dead ones: what a new checkpoint would take in."""
        return sum(segment.size for segment in self.segments[1:]) + self.dead_count

    @property
    def exact(self) -> bool:
        """Whether scores are the cosines of the stored vectors; else they are near them."""
        return all(segment.exact for segment in self.segments)

    def with_changes(
        self, ids: NDArray[np.int64], vectors: NDArray[np.float32], dead: NDArray[np.int64] = _NONE
    ) -> VectorIndex:
        """A new index with `vectors` (n, d) added under `ids` (n,) and `dead` ids hidden."""
        known = self.dead if self.dead is not None else _NONE
        hidden = np.union1d(known, dead).astype(np.int64)
        segments = self.segments
        if len(ids):
            segments = (*segments, self._flat(ids, check_vectors(vectors, self.dimension)))
        if len(segments) > MAX_SEGMENTS:
            segments = (segments[0], self._merged(segments[1:]))
        return VectorIndex(
            self.dimension, self.precision, segments, hidden if len(hidden) else None
        )

    def _flat(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> Segment:
        return flat_segment(ids, vectors, self.precision)

    def _merged(self, segments: Sequence[Segment]) -> Segment:
        return self._flat(
            np.concatenate([segment.ids() for segment in segments]),
            np.concatenate([segment.vectors() for segment in segments]),
        )

    def without(self, dead: NDArray[np.int64]) -> VectorIndex:
        """A new index with `dead` ids hidden."""
        return self.with_changes(_NONE, np.zeros((0, self.dimension), dtype=np.float32), dead)

    def search(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k nearest vectors of one query (d,): ids and scores, best first, ties by id.

        `allowed` (n,) are the only ids that may be found; None allows all. At most `MAX_K` are
        returned.
        """
        if not 1 <= k <= MAX_K:
            raise InvalidInput(f"k is {k}; it must lie between 1 and {MAX_K:,}")
        query = check_vectors(query[None, :], self.dimension)
        if not self.segments or (allowed is not None and not len(allowed)):
            return _NONE, np.zeros(0, dtype=np.float32)
        # The selector must outlive the search: FAISS keeps a bare pointer to it and to its bits.
        bits = self._selected(allowed)
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        share = 1.0 if allowed is None else min(1.0, len(allowed) / max(1, self.size))
        found_ids, found_scores = [], []
        for segment in self.segments:
            scores, ids = segment.search(query, min(k, segment.size), selector, share)
            real = ids[0] >= 0  # FAISS pads with -1
            found_ids.append(ids[0][real])
            found_scores.append(scores[0][real])
        ids, scores = np.concatenate(found_ids), np.concatenate(found_scores)
        order = np.lexsort((ids, -scores))[:k]
        return ids[order], scores[order]

    def _selected(self, allowed: NDArray[np.int64] | None) -> NDArray[np.uint8] | None:
        """One bit for each id that may be found; None where that is all of them."""
        if allowed is None and self.dead is None:
            return None
        last = max(segment.last_id for segment in self.segments)
        chosen = np.zeros(last + 1, dtype=bool)
        chosen[slice(None) if allowed is None else allowed[allowed <= last]] = True
        if self.dead is not None:
            chosen[self.dead[self.dead <= last]] = False
        return np.packbits(chosen, bitorder="little")

    def ids(self) -> NDArray[np.int64]:
        """All ids in the segments, dead ones included."""
        return np.concatenate([_NONE, *(segment.ids() for segment in self.segments)])


def check_vectors(vectors: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """Unit vectors as FAISS wants them: float32, C order, (n, dimension).

    Raises:
        InvalidInput: another shape, or a vector that is not finite or not of unit length.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise InvalidInput(f"vectors have shape {vectors.shape}; (n, {dimension}) is due")
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.einsum("ij,ij->i", array, array)
    bad = ~(np.abs(norms - 1.0) < 1e-2)  # catches NaN as well
    if bad.any():
        n = int(np.flatnonzero(bad)[0])
        raise InvalidInput(
            f"vector {n} of {len(array)} has squared length {norms[n]:.4g}; unit length is due"
        )
    return array
