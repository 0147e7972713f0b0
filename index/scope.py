"""Which vectors a filter on documents lets through."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragembed.index import lookup
from ragembed.index.store import Store

# Up to so many documents the database is asked for them one by one; for more, for all there are.
_FEW = 1_000


class DocumentVectors:
    """The vectors of documents, in one commit and for one model. Safe to share by threads.

    A filter that names few documents is looked up. One that names many would take a second to look up,
    so all pairs of document and vector are read once (16 bytes each) and kept.
    """

    def __init__(self, model_id: int) -> None:
        self._model_id = model_id
        self._reading = threading.Lock()
        self._pairs: NDArray[np.int64] | None = None  # (n, 2)

    def of(self, store: Store, documents: Sequence[int]) -> NDArray[np.int64]:
        """Sorted vector ids, each once; `store` sees the commit that this is about."""
        if len(documents) <= _FEW:
            return lookup.vector_ids_of_documents(store, self._model_id, documents)
        with self._reading:
            if self._pairs is None:
                self._pairs = lookup.document_vectors(store, self._model_id)
        pairs = self._pairs
        if not len(pairs):
            return np.zeros(0, dtype=np.int64)
        chosen = np.zeros(int(pairs[:, 0].max()) + 1, dtype=bool)
        chosen[[id for id in documents if id < len(chosen)]] = True
        return np.unique(pairs[chosen[pairs[:, 0]], 1])
