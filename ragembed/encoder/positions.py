"""How a network learns where a token stands.

Attention sees a bag of tokens; the place of each has to be told. `EncoderConfig.position` names the
vector that is added to each token (learned, sinusoidal), `EncoderConfig.relative` what changes the
attention score of a pair by its distance (rotary, buckets, relative_key).

Shapes: B texts, L tokens, D hidden size, H heads, K = D / H per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ragembed.encoder.table import Table


def sinusoidal(positions: Tensor, size: int) -> Tensor:
    """Fixed sines and cosines (Vaswani et al., 2017; arXiv:1706.03762, section 3.5).

    Dimensions 2i and 2i + 1 turn at the rate 10000^(-2i / size), so moving on by k places is a
    rotation of each pair by a fixed angle: PE(p + k) is a linear map of PE(p).

    Args:
        positions: (L,) places, from 0.
        size: length of each vector, even.

    Returns:
        (L, size) float32.

    >>> sinusoidal(torch.arange(2), 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    rates = torch.exp(torch.arange(0, size, 2, device=positions.device) * (-math.log(1e4) / size))
    angles = positions[:, None] * rates  # (L, size / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (L, size)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021; arXiv:2104.09864), in the halves layout of GPT-NeoX.

    Components i and i + K/2 of a query or key are turned by the angle p * 10000^(-2i / K). The
    product of a query at p and a key at r then depends on p - r alone.

    Args:
        x: (..., L, K) queries or keys.
        positions: (L,) or (..., L) places, from 0.

    Returns:
        (..., L, K), of x's dtype.
    """
    K = x.shape[-1]
    rates = torch.exp(torch.arange(0, K, 2, device=x.device) * (-math.log(1e4) / K))
    angles = positions[..., None] * rates  # (..., L, K / 2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, dim=-1)  # two of (..., L, K / 2)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def bucket(distance: Tensor, buckets: int = 32, farthest: int = 128) -> Tensor:
    """Which bucket a distance falls into (T5, Raffel et al., 2020; arXiv:1910.10683).

    Half of the buckets are for keys behind the query, half for keys in front of it. Of each half,
    the first half holds one distance each, the rest grows logarithmically up to `farthest`.

    Args:
        distance: key place minus query place, any shape.

    Returns:
        Bucket numbers of the same shape, 0 to buckets - 1.

    >>> bucket(torch.tensor([0, -1, -7, -8, -20, -500, 1])).tolist()
    [0, 1, 7, 8, 10, 15, 17]
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    scaled = torch.log(far.clamp(min=1).float() / exact) / math.log(farthest / exact)
    grown = (exact + (scaled * (half - exact)).to(torch.long)).clamp(max=half - 1)
    return (distance > 0) * half + torch.where(far < exact, far, grown)


def distances(length: int, device: torch.device) -> Tensor:
    """Key place minus query place for all pairs: (L, L), row = query."""
    places = torch.arange(length, device=device)
    return places[None, :] - places[:, None]


class BucketBias(nn.Module):
    """T5-style bias, one number a head and bucket, shared by all blocks (MPNet)."""

    def __init__(self, heads: int, buckets: int = 32) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = Table(buckets, heads)

    def forward(self, length: int) -> Tensor:
        places = bucket(distances(length, self.table.weight.device), self.buckets)  # (L, L)
        bias: Tensor = self.table(places)  # (L, L, H)
        return bias.permute(2, 0, 1)[None]  # (1, H, L, L)


class RelativeKey(nn.Module):
    """A learned key vector a distance (Shaw et al., 2018; arXiv:1803.02155): BERT's `relative_key`.

    The score of query q at place l and key k at place r is q . (k + a[l - r]) / sqrt(K).
    """

    def __init__(self, positions: int, head_size: int) -> None:
        super().__init__()
        self.table = Table(2 * positions - 1, head_size)

    def forward(self, q: Tensor) -> Tensor:
        """Queries (B, H, L, K) to what is added to their scaled scores, (B, H, L, L)."""
        L, K = q.shape[-2:]
        middle = self.table.num_embeddings // 2
        rows = self.table(middle - distances(L, q.device))  # (L, L, K)
        bias = torch.einsum("bhlk,lrk->bhlr", q, rows.to(q.dtype))
        return bias / math.sqrt(K)
