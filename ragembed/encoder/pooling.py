"""Pooling: the token vectors of a text become one vector.

The modes and their edge rules are those of the sentence-transformers checkpoint format
(`1_Pooling/config.json`), so that a checkpoint gives the same vectors here and there.

Shapes: B texts, L tokens, D hidden size, P pooling modes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ragembed.config import Pooling
from ragembed.encoder.masks import places


def pool(tokens: Tensor, real: Tensor | None, modes: Sequence[Pooling], *, skip: int = 0) -> Tensor:
    """Token vectors (B, L, D) to text vectors (B, P * D), one part a mode.

    Args:
        tokens: (B, L, D) float32.
        real: (B, L), 1 = real, 0 = padding, on either side; None says that all are real.
        modes: `mean`, `max` over the real tokens; `cls` and `lasttoken` take the first and the
            last; `mean_sqrt_len` divides the sum by the root of the length; `weightedmean` weighs
            token i (from 1) by i.
        skip: leave out so many tokens at the front of each text (a prompt).

    >>> words = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    >>> pool(words, torch.tensor([[1, 1, 0]]), ["mean", "lasttoken"])
    tensor([[0.5000, 0.5000, 0.0000, 1.0000]])
    """
    if real is None:
        real = torch.ones(tokens.shape[:2], device=tokens.device)
    at = places(real)  # (B, L)
    counted = (real != 0) & (at >= skip)  # (B, L)
    # A text can melt into the prompt's last token; it then keeps all of its tokens.
    counted = torch.where(counted.any(dim=1, keepdim=True), counted, real != 0)
    return torch.cat([_pool(tokens, counted, at, mode) for mode in modes], dim=-1)


def _pool(tokens: Tensor, counted: Tensor, at: Tensor, mode: Pooling) -> Tensor:
    """One mode: (B, L, D), (B, L) bool, (B, L) places -> (B, D)."""
    if mode in ("cls", "lasttoken"):
        # argmax gives the first of equals: the first counted token, from this side or the other.
        if mode == "cls":
            chosen = counted.int().argmax(dim=1)
        else:
            chosen = counted.shape[1] - 1 - counted.int().flip(1).argmax(dim=1)
        return tokens[torch.arange(len(tokens), device=tokens.device), chosen]
    if mode == "max":
        return tokens.masked_fill(~counted[..., None], -torch.inf).amax(dim=1)
    weight = counted.to(tokens.dtype)  # (B, L)
    if mode == "weightedmean":
        weight = weight * (at + 1)
    total = torch.einsum("bld,bl->bd", tokens, weight)
    mass = weight.sum(dim=1, keepdim=True).clamp(min=1e-9)  # (B, 1)
    return total / (mass.sqrt() if mode == "mean_sqrt_len" else mass)
