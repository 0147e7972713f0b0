"""Doubles for tests: an embedder that needs no model, and what tests share about an index.

Test files cannot import each other (`--import-mode=importlib`), so `tests/index/conftest.py` and the
scripts in `tests/soak` load this file by its path.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ragembed import budget_tokenizer
from ragembed.tokenizer import Tokenizer

_WORD = re.compile(r"\w+")


@cache
def _tokenizer() -> Tokenizer:
    return budget_tokenizer()


class FakeEmbedder:
    """The sum of one random direction per word: equal texts are equal, shared words bring near.

    `encoded` holds every document text in the order it was encoded. `before` is called with the
    texts of each call and may raise.
    """

    name = "fake"

    def __init__(self, dimension: int = 16, fingerprint: str = "fake-1") -> None:
        self.dimension = dimension
        self.fingerprint = fingerprint
        self.tokenizer = _tokenizer()
        self.encoded: list[str] = []
        self.before: Callable[[Sequence[str]], None] | None = None

    def encode_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._vector(text) for text in texts])

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.before is not None:
            self.before(texts)
        self.encoded += texts
        return np.stack([self._vector(text) for text in texts])

    def take_encoded(self) -> list[str]:
        """What was encoded since the last call."""
        taken, self.encoded = self.encoded, []
        return taken

    def _vector(self, text: str) -> NDArray[np.float32]:
        words = _WORD.findall(text.lower()) or [text]
        total = np.sum([_direction(word, self.dimension) for word in words], axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)


def _direction(word: str, dimension: int) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dimension)
