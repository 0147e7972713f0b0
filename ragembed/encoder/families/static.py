"""Static checkpoints: a token table and nothing else, the zero-layer encoder.

Two layouts: the StaticEmbedding module of sentence-transformers (`embedding.weight`), and model2vec
(`embeddings`, optionally a `mapping` from token ids to rows and a weight a token).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ragembed.config import EncoderConfig
from ragembed.errors import ModelError

# A mean over tokens has no longest input of its own; this bounds a batch.
LONGEST = 1_000_000


def table(tensors: Mapping[str, Tensor], folder: Path) -> Tensor:
    """One row a token id, (V, D) float32.

    Raises:
        ModelError: neither layout.
    """
    if "embedding.weight" in tensors:
        rows = tensors["embedding.weight"].float()
        if rows.dim() != 2:
            raise ModelError(f"the table in {folder} has {rows.dim()} dimensions; 2 are due")
        return rows
    if "embeddings" not in tensors:
        raise ModelError(f"{folder} is no static model: its weights are {sorted(tensors)[:5]}")
    if tensors["embeddings"].dim() != 2:
        raise ModelError(f"the table in {folder} has {tensors['embeddings'].dim()} dimensions")
    rows = tensors["embeddings"].float()
    if "mapping" in tensors:
        mapping = tensors["mapping"].long()
        if mapping.dim() != 1 or bool(((mapping < 0) | (mapping >= len(rows))).any()):
            raise ModelError(f"the mapping in {folder} names rows that its {len(rows)} have not")
        rows = rows[mapping]
    if "weights" in tensors:
        weights = tensors["weights"].float()
        if weights.shape != rows.shape[:1]:
            raise ModelError(f"{folder} has {len(weights)} weights for {len(rows)} tokens")
        rows = rows * weights[:, None]
    return rows


def config(rows: Tensor, *, drop_unknown: bool) -> EncoderConfig:
    """The shape of an encoder of nothing but a table (V, D)."""
    return EncoderConfig(
        vocabulary_size=rows.shape[0],
        hidden_size=rows.shape[1],
        layers=0,
        heads=1,
        intermediate_size=rows.shape[1],
        positions=LONGEST,
        max_length=LONGEST,
        position="none",
        front_norm=False,
        specials=False,
        drop_unknown=drop_unknown,
    )
