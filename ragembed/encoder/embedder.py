"""What an index asks of an encoder, so that anything else may stand in for `PoolingEncoder`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors: a local model, a remote endpoint, a test double.

    An embedder may also have `tokenizer` (a `ragembed.tokenizer.Tokenizer`; documents are then cut
    in its tokens) and `name` (shown by `status`).
    """

    @property
    def dimension(self) -> int:
        """d, the length of each vector."""

    @property
    def fingerprint(self) -> str:
        """Equal for two embedders exactly when their vectors can be compared."""

    def encode_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Queries as unit vectors, float32, shape (n, d)."""

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Pieces of documents as unit vectors, float32, shape (n, d)."""
