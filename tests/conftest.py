"""Shared by all tests: the real model, loaded once, and where outside data may be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ragembed import PoolingEncoder
    from ragembed.tokenizer import HuggingFaceTokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def encoder() -> PoolingEncoder:
    """all-MiniLM-L6-v2 in float32."""
    from ragembed import PoolingEncoder

    return PoolingEncoder.from_pretrained("all-MiniLM-L6-v2", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def wordpiece(encoder: PoolingEncoder) -> HuggingFaceTokenizer:
    """Its tokenizer."""
    return encoder.tokenizer


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of evaluation sets and real documents, or a skip that says what is missing."""
    folder = Path(os.environ.get("RAGEMBED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data: RAGEMBED_DATA is not set and {folder} is not there")
    return folder
