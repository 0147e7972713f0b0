"""Front end of the encoder: a token embedding plus a position embedding, then LayerNorm.

Shapes: B texts in a batch, L tokens each, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PositionalEmbedding(nn.Module):
    """Learned absolute positions: row i is added to whatever token stands at place i."""

    def __init__(self, positions: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(positions, hidden_size)

    def forward(self, length: int) -> Tensor:
        return self.table.weight[:length]  # (L, D)


class FrontEnd(nn.Module):
    """ids -> LayerNorm(token vector + position vector).

    BERT adds the vector of segment 0 to every token as well. It is the same for all of them, so the
    loader folds it into the position table and no third table is left.
    """

    def __init__(self, vocabulary_size: int, positions: int, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary_size, hidden_size)
        self.position = PositionalEmbedding(positions, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.token(ids)  # (B, L) -> (B, L, D)
        positions = self.position(ids.shape[1])  # (L, D), the same for every text
        normed: Tensor = self.norm(tokens + positions)  # (B, L, D)
        return normed


def padding_mask(lengths: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Additive mask, (B, 1, 1, L): 0 where a token is real, the dtype's minimum where it is padding.

    Args:
        lengths: (B,) real tokens of each text.
        length: L, the padded length.
        dtype: of the attention scores; -1e9 would overflow in float16, its own minimum cannot.
    """
    real = torch.arange(length, device=lengths.device)[None, :] < lengths[:, None]  # (B, L)
    mask = torch.zeros(real.shape, dtype=dtype, device=lengths.device)
    return mask.masked_fill(~real, torch.finfo(dtype).min)[:, None, None, :]  # (B, 1, 1, L)
