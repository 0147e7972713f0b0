"""Pooling: the token vectors of a text become one vector.

The modes and their edge rules are those of the sentence-transformers checkpoint format
(`1_Pooling/config.json`), so that a checkpoint gives the same vectors here and there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ragembed.config import Pooling


def pool(tokens: Tensor, lengths: Tensor, mode: Pooling) -> Tensor:
    """Token vectors (B, L, D), padded on the right, to text vectors (B, D).

    Args:
        tokens: (B, L, D) float32.
        lengths: (B,) real tokens of each text, at least 1.
        mode: `mean`, `max` over the real tokens; `cls` and `lasttoken` take the first and the last;
            `mean_sqrt_len` divides the sum by the root of the length; `weightedmean` weighs token i
            (from 1) by i.
    """
    B, L, _ = tokens.shape
    if mode == "cls":
        return tokens[:, 0]
    if mode == "lasttoken":
        return tokens[torch.arange(B, device=tokens.device), lengths - 1]
    real = (torch.arange(L, device=tokens.device)[None, :] < lengths[:, None])[..., None]  # (B,L,1)
    if mode == "max":
        return tokens.masked_fill(~real, -torch.inf).amax(dim=1)
    weight = real.to(tokens.dtype)  # (B, L, 1)
    if mode == "weightedmean":
        weight = weight * torch.arange(1, L + 1, device=tokens.device)[None, :, None]
    total = (tokens * weight).sum(dim=1)  # (B, D)
    mass = weight.sum(dim=1)  # (B, 1)
    return total / (mass.sqrt() if mode == "mean_sqrt_len" else mass)
