"""ragembed: index folders of documents, search them, and get citable context for an LLM.

The names below are resolved when they are first used, so that `import ragembed` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragembed.corpus import Corpus
    from ragembed.corpus import Corpus as open
    from ragembed.encoder.embedder import Embedder
    from ragembed.encoder.model import PoolingEncoder
    from ragembed.errors import RagembedError
    from ragembed.tokenizer import budget_tokenizer
    from ragembed.types import Context, Document, Hit, SearchResult, SyncReport

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Corpus",
    "Document",
    "Embedder",
    "Hit",
    "PoolingEncoder",
    "RagembedError",
    "SearchResult",
    "SyncReport",
    "budget_tokenizer",
    "open",
]

_HOME = {
    "Context": ("ragembed.types", "Context"),
    "Corpus": ("ragembed.corpus", "Corpus"),
    "Document": ("ragembed.types", "Document"),
    "Embedder": ("ragembed.encoder.embedder", "Embedder"),
    "Hit": ("ragembed.types", "Hit"),
    "PoolingEncoder": ("ragembed.encoder.model", "PoolingEncoder"),
    "RagembedError": ("ragembed.errors", "RagembedError"),
    "SearchResult": ("ragembed.types", "SearchResult"),
    "SyncReport": ("ragembed.types", "SyncReport"),
    "budget_tokenizer": ("ragembed.tokenizer", "budget_tokenizer"),
    "open": ("ragembed.corpus", "Corpus"),
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ragembed' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
