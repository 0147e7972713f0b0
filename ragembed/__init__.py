"""ragembed: index folders of documents, search them, and get citable context for an LLM."""

from __future__ import annotations

__version__ = "0.1.0"
