"""Attention masks, additive: 0 where a query may look, the dtype's minimum where it may not.

The minimum rather than -1e9, which is -inf in float16; and never -inf, because a row of nothing but
-inf becomes NaN in a softmax.

Shapes: B texts, L tokens; a score is (B, H, L queries, L keys), and masks broadcast over it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Hide padding from everyone: (B, L) with 1 = real, 0 = padding -> (B, 1, 1, L).

    >>> padding_mask(torch.tensor([[1, 1, 0]]), torch.float16)
    tensor([[[[     0.,      0., -65504.]]]], dtype=torch.float16)
    """
    mask = torch.zeros(real.shape, dtype=dtype, device=real.device)
    return mask.masked_fill(real == 0, torch.finfo(dtype).min)[:, None, None, :]


def causal_mask(length: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Hide what comes later: (1, 1, L, L), 0 on and below the diagonal.

    >>> causal_mask(2, torch.float16)
    tensor([[[[     0., -65504.],
              [     0.,      0.]]]], dtype=torch.float16)
    """
    later = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return later.triu(1)[None, None]


def combine(*masks: Tensor | None) -> Tensor | None:
    """The sum of masks and biases, kept from overflowing; None when there are none."""
    total: Tensor | None = None
    for mask in masks:
        if mask is not None:
            total = mask if total is None else total + mask
    return None if total is None else total.clamp(min=torch.finfo(total.dtype).min)


def places(real: Tensor) -> Tensor:
    """The place of each token in its text, from 0, whichever side is padded: (B, L) -> (B, L).

    Padding gets the place 0 or that of the last token; nothing looks at it.
    """
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)
