"""Which FAISS index for how many vectors, how it is built, and how far a search looks.

Up to `FLAT_LIMIT` vectors every search is exact: a scan of all of them. Above, vectors are grouped into
lists around centroids (IVF; Jegou et al. 2011, "Product quantization for nearest neighbor search",
section 4), and a search scans the lists nearest to the query. The figures behind the constants are in
docs/reliability.md and come from benchmarks/growth.py.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from ragembed.config import VectorPrecision
from ragembed.errors import InvalidInput
from ragembed.index.rows import StoredModel

logger = logging.getLogger(__name__)

FLAT = "SQfp16"  # holds float16 as it is stored, in half of float32's memory
FLAT_FLOAT32 = "Flat"
FLAT_LIMIT = 300_000  # a scan of so many takes about as long as encoding the query
RESCORE = 4  # times k: how many inexact candidates are looked up and scored exactly
_TRAINING_POINTS = 40  # vectors per list that k-means sees
_TRAINING_ROUNDS = 8
_MOST_LISTS = 65_536
# Lists looked into: about the same number at all sizes, and twice as many where many are wanted.
_PROBES = 400
_PROBED_SHARE = 0.05
_MANY = 100
# With a filter that lets less than this share through, every list is looked into, which is exact.
_SMALL_SUBSET = 0.2
# k-means no longer fits the vectors: lists are so uneven (1.3 to 1.5 after training), and so many are
# new that training again is worth it.
_UNEVEN = 3.0
_GROWN = 1.2
_GRAPH_EFFORT = 128  # efSearch of an HNSW that the user has asked for

Parts = Callable[[], Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A FAISS index over vectors by id; never changed once it is made.

    `exact` says that its scores are the cosines of the stored vectors; `probes` is how many of its
    lists a search looks into, 0 where it has none.
    """

    index: faiss.Index
    exact: bool
    last_id: int
    probes: int = 0
    graph: bool = False  # HNSW
    memory: NDArray[np.uint8] | None = None  # the file's bytes, which the index looks into

    @property
    def size(self) -> int:
        """Vectors in it."""
        return int(self.index.ntotal)

    def search(
        self, query: NDArray[np.float32], k: int, selector: faiss.IDSelector | None, share: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and ids, both (1, k), padded with id -1.

        Args:
            query: (1, d).
            k: how many.
            selector: a FAISS id selector, or None.
            share: of the vectors, how many the selector's filter lets through.
        """
        parameters = None
        if self.probes:
            lists = int(self.index.nlist)
            wanted = self.probes * (2 if k > _MANY else 1)
            probes = lists if share < _SMALL_SUBSET else min(lists, round(wanted / share))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        elif self.graph:
            effort = min(self.size, round(max(_GRAPH_EFFORT, k) / share))
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
        elif selector is not None:
            parameters = faiss.SearchParameters(sel=selector)
        # One query gains nothing from threads, and waits for them: FAISS's barriers took 20 ms where
        # the search took 0.2, on a machine with other work. The setting is the calling thread's.
        faiss.omp_set_num_threads(1)
        scores, ids = self.index.search(query, k, params=parameters)
        return scores, ids

    def ids(self) -> NDArray[np.int64]:
        """All ids, (n,)."""
        if not self.probes:
            found: NDArray[np.int64] = faiss.vector_to_array(self.index.id_map)
            return found
        lists = self.index.invlists
        sizes = [(n, lists.list_size(n)) for n in range(int(self.index.nlist))]
        parts = [
            np.array(faiss.rev_swig_ptr(lists.get_ids(n), size), dtype=np.int64)
            for n, size in sizes
            if size
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def vectors(self) -> NDArray[np.float32]:
        """All vectors in the order of `ids`, (n, d); of flat segments only."""
        flat = faiss.downcast_index(self.index.index)
        found: NDArray[np.float32] = flat.reconstruct_n(0, self.size)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A segment with what the catalogue says of it; see `rows.Checkpoint`."""

    segment: Segment
    kind: str
    trained: int


def choose(vectors: int, model: StoredModel) -> str:
    """The factory string for so many vectors of a model."""
    flat = FLAT if model.precision == "float16" else FLAT_FLOAT32
    if vectors <= FLAT_LIMIT:
        return flat
    return f"IVF{list_count(vectors)},{flat}"


def list_count(vectors: int) -> int:
    """How many lists: about 8 times the root, in powers of two so that growth keeps them a while."""
    return min(_MOST_LISTS, 1 << round(math.log2(8 * vectors**0.5)))


def check_factory(factory: str, dimension: int) -> None:
    """Make sure that FAISS knows a factory string and that its index can be searched by cosine.

    Raises:
        InvalidInput: it does not.
    """
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InvalidInput(
            f"FAISS cannot build {factory!r} for {dimension} dimensions "
            f"({str(error).rpartition(': ')[2]}): name a factory string such as HNSW32,SQ8"
        ) from None
    families = (faiss.IndexIVF, faiss.IndexHNSW, faiss.IndexScalarQuantizer, faiss.IndexFlat)
    if not isinstance(index, families):
        raise InvalidInput(
            f"the factory string {factory!r} is not supported: name Flat, SQ..., HNSW... or IVF..., "
            "without IDMap (ids are added by ragembed) and without a transform in front"
        )


def build(model: StoredModel, kind: str, count: int, parts: Parts, before: Built | None) -> Built:
    """An index of all vectors.

    Args:
        model: whose vectors.
        kind: a factory string.
        count: how many vectors there are.
        parts: gives them, ids ascending, as often as it is called.
        before: an index of the same kind whose training may be used again; it is taken apart.
    """
    faiss.omp_set_num_threads(_cores())
    if (
        before is not None
        and before.kind == kind
        and isinstance(before.segment.index, faiss.IndexIVF)
    ):
        index = before.segment.index
        index.reset()
        segment = _filled(index, kind, model, parts)
        uneven = float(index.invlists.imbalance_factor())
        if uneven < _UNEVEN or count < _GROWN * before.trained:
            return Built(segment, kind, before.trained)
    try:
        return _trained(model, kind, count, parts)
    except RuntimeError as error:  # fewer vectors than lists or code words, for one
        flat = choose(0, model)
        if kind == flat:
            raise
        logger.warning("FAISS cannot build %s from %d vectors (%s): a scan of all is used", kind, count,
                       str(error).rpartition(": ")[2])  # fmt: skip
        return _trained(model, flat, count, parts)


def _trained(model: StoredModel, kind: str, count: int, parts: Parts) -> Built:
    trained = 0
    index = faiss.index_factory(model.dimension, kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        _train(index, _sample(parts, count, _training_size(index)))
        trained = count
    if isinstance(index, faiss.IndexIVFScalarQuantizer) and kind.endswith(",SQfp16"):
        index.by_residual = False  # the stored float16 itself, not its distance to a centroid
    return Built(_filled(index, kind, model, parts), kind, trained)


def _filled(index: faiss.Index, kind: str, model: StoredModel, parts: Parts) -> Segment:
    """A trained, empty index with all vectors."""
    lists = isinstance(index, faiss.IndexIVF)
    target = index if lists else faiss.IndexIDMap(index)
    last = 0
    for ids, vectors in parts():
        target.add_with_ids(vectors, np.ascontiguousarray(ids, dtype=np.int64))
        last = int(ids[-1])
    return segment_of(target, kind, model, last, _probes(index) if lists else 0)


def segment_of(
    index: faiss.Index,
    kind: str,
    model: StoredModel,
    last_id: int,
    probes: int,
    memory: NDArray[np.uint8] | None = None,
) -> Segment:
    """A FAISS index that has been built or read."""
    codec = kind.rpartition(",")[2]
    exact = codec == "Flat" or (codec == "SQfp16" and model.precision == "float16")
    return Segment(index, exact, last_id, probes, kind.startswith("HNSW"), memory)


def retrain_due(trained: int, vectors: int) -> bool:
    """Whether an index has outgrown its centroids."""
    return not trained / 2 <= vectors <= trained * 2


def flat_segment(
    ids: NDArray[np.int64], vectors: NDArray[np.float32], precision: VectorPrecision
) -> Segment:
    """An exact index of unit `vectors` (n, d), of that precision, under ascending `ids` (n,)."""
    kind = FLAT if precision == "float16" else FLAT_FLOAT32
    flat = faiss.IndexIDMap(faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT))
    flat.add_with_ids(vectors, np.ascontiguousarray(ids, dtype=np.int64))
    return Segment(flat, True, int(ids.max(initial=0)))


def _cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _probes(index: faiss.Index) -> int:
    lists = int(index.nlist)
    return min(lists, max(_PROBES, round(lists * _PROBED_SHARE)))


def _training_size(index: faiss.Index) -> int:
    lists = int(index.nlist) if isinstance(index, faiss.IndexIVF) else 1024
    return _TRAINING_POINTS * lists


def _train(index: faiss.Index, sample: NDArray[np.float32]) -> None:
    if isinstance(index, faiss.IndexIVF):
        index.cp.niter = _TRAINING_ROUNDS
        index.cp.max_points_per_centroid = _TRAINING_POINTS
        index.cp.min_points_per_centroid = 1  # no warning for small indexes that were asked for
    index.train(sample)


def _sample(parts: Parts, count: int, size: int) -> NDArray[np.float32]:
    """About `size` of the vectors, spread over all of them."""
    step = max(1, count // size)
    return np.concatenate([vectors[::step] for _, vectors in parts()])
