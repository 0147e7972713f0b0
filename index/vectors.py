"""The dense leg: FAISS over unit vectors, as immutable segments and a checkpoint file.

FAISS files carry no checksum, and about a third of damaged ones load and answer differently; so a
file is parsed only when the SHA-256 of the very bytes that are parsed matches the catalogue. FAISS
checks its arguments with `assert`, which `python -O` removes; so they are checked here. An index that
is being searched is never added to: a change makes a new segment, and a new `VectorIndex`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from ragembed.errors import InvalidInput
from ragembed.index.schema import sync_directory

# Segments beyond this are merged into one, so that a search stays one or two scans.
MAX_SEGMENTS = 8
MAX_K = 100_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A FAISS file in the index directory, as catalogued."""

    file: str
    size: int
    sha256: bytes
    vectors: int
    max_vector_id: int
    generation: int


@dataclass(frozen=True, slots=True, eq=False)
class VectorIndex:
    """Vectors by id, exact inner product; a value that is replaced, never changed.

    `dead` (m,) are sorted ids that segments still hold but no search may return.
    """

    dimension: int
    segments: tuple[faiss.Index, ...] = ()
    dead: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        """Vectors in the segments, dead ones included."""
        return sum(int(segment.ntotal) for segment in self.segments)

    @property
    def dead_count(self) -> int:
        """Vectors that are only waiting to be dropped."""
        return 0 if self.dead is None else len(self.dead)

    def with_changes(
        self, ids: NDArray[np.int64], vectors: NDArray[np.float32], dead: NDArray[np.int64]
    ) -> VectorIndex:
        """A new index with `vectors` (n, d) added under `ids` (n,) and `dead` ids hidden."""
        known = self.dead if self.dead is not None else np.zeros(0, dtype=np.int64)
        hidden = np.union1d(known, dead).astype(np.int64)
        segments = self.segments
        if len(ids):
            segments = (*segments, segment_of(ids, check_vectors(vectors, self.dimension)))
        if len(segments) > MAX_SEGMENTS:
            segments = (segments[0], _merged(segments[1:], self.dimension))
        return VectorIndex(self.dimension, segments, hidden if len(hidden) else None)

    def search(
        self, query: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k nearest vectors of one query (d,): ids and cosines, best first, ties by id."""
        if not 1 <= k <= MAX_K:
            raise InvalidInput(f"k is {k}; it must lie between 1 and {MAX_K:,}")
        query = check_vectors(query[None, :], self.dimension)
        params = None
        if self.dead is not None:
            # Both selectors must outlive the search: FAISS keeps bare pointers to them.
            batch = faiss.IDSelectorBatch(self.dead)
            selector = faiss.IDSelectorNot(batch)
            params = faiss.SearchParameters(sel=selector)
        found_ids, found_scores = [], []
        for segment in self.segments:
            scores, ids = segment.search(query, min(k, int(segment.ntotal)), params=params)
            real = ids[0] >= 0  # FAISS pads with -1
            found_ids.append(ids[0][real])
            found_scores.append(scores[0][real])
        if not found_ids:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        ids, scores = np.concatenate(found_ids), np.concatenate(found_scores)
        order = np.lexsort((ids, -scores))[:k]
        return ids[order], scores[order]

    def ids(self) -> NDArray[np.int64]:
        """All ids in the segments, dead ones included."""
        if not self.segments:
            return np.zeros(0, dtype=np.int64)
        return np.concatenate([faiss.vector_to_array(segment.id_map) for segment in self.segments])

    def compacted(self) -> VectorIndex:
        """One segment, no dead vectors."""
        merged = _merged(self.segments, self.dimension, drop=self.dead)
        return VectorIndex(self.dimension, (merged,) if merged.ntotal else ())

    def save(self, directory: Path, name: str) -> tuple[int, bytes]:
        """Write the single segment to a new file; returns its size and SHA-256.

        Temporary name, hash on the way, fsync, rename, fsync of the directory. A failed write leaves
        nothing behind.
        """
        digest = hashlib.sha256()
        size = 0
        draft = directory / f"{name}.tmp"
        try:
            with open(draft, "xb", opener=_private) as file:

                def write(chunk: bytes) -> int:
                    nonlocal size
                    digest.update(chunk)
                    size += len(chunk)
                    return file.write(chunk)

                faiss.write_index(self.segments[0], faiss.PyCallbackIOWriter(write))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, 0o400)  # write-once
            os.replace(draft, directory / name)
            sync_directory(directory)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return size, digest.digest()

    @classmethod
    def load(cls, directory: Path, checkpoint: Checkpoint, dimension: int) -> VectorIndex | None:
        """Read a checkpoint; None when the file is not byte for byte what was written."""
        try:
            data = (directory / checkpoint.file).read_bytes()
        except OSError:
            return None  # missing or unreadable: the caller rebuilds from the database
        if len(data) != checkpoint.size or hashlib.sha256(data).digest() != checkpoint.sha256:
            return None
        segment = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        if segment.d != dimension or segment.ntotal != checkpoint.vectors:
            return None
        return cls(dimension, (segment,))


def segment_of(ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> faiss.Index:
    """A flat inner-product index of `vectors` (n, d) under `ids` (n,)."""
    flat = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    flat.add_with_ids(vectors, np.ascontiguousarray(ids, dtype=np.int64))
    return flat


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


def _merged(
    segments: Sequence[faiss.Index], dimension: int, drop: NDArray[np.int64] | None = None
) -> faiss.Index:
    merged = faiss.IndexIDMap(faiss.IndexFlatIP(dimension))
    for segment in segments:
        ids = faiss.vector_to_array(segment.id_map)
        vectors = segment.index.reconstruct_n(0, int(segment.ntotal))
        if drop is not None:
            keep = ~np.isin(ids, drop)
            ids, vectors = ids[keep], vectors[keep]
        if len(ids):
            merged.add_with_ids(vectors, ids)
    return merged


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
