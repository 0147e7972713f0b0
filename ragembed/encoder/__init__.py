"""The encoder: token ids -> front end -> transformer -> pooling -> one vector a text.

Importing this package is light; `ragembed.encoder.model` is where torch comes in.
"""

from ragembed.encoder.embedder import Embedder

__all__ = ["Embedder"]
