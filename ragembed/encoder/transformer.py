"""The transformer, read from top to bottom: attention, MLP, block, stack.

Post-norm blocks as in BERT (Devlin et al., 2019; arXiv:1810.04805) or pre-norm ones as in GPT-2.
The matrix products run in `compute_dtype` (see `linear.Linear`); the residual stream and LayerNorm
stay in float32, which costs little and keeps bfloat16 vectors within a cosine of 0.9999 of
float32's.

Tokens come as rows, those of all texts of a batch one behind the other; only attention looks at
which of them are a text (see `packing`).

Shapes: N rows, D hidden size, H heads, K = D / H per head; a group has G texts of at most M tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragembed.config import EncoderConfig
from ragembed.encoder.linear import Linear
from ragembed.encoder.masks import causal_mask, combine, padding_mask, places
from ragembed.encoder.packing import Group
from ragembed.encoder.positions import BucketBias, RelativeKey, rotate

# On a CPU so many scores are computed at a time (4 MB in float32), so that they stay in the cache.
# Texts whose scores are more go through torch's own blockwise attention.
SCORES_AT_ONCE = 1 << 20


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, unbiased: int = 0) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v: queries, keys, values (G, H, M, K) -> (G, H, M, K).

    `bias` broadcasts to (G, H, M, M) and is zero for the first `unbiased` keys.
    """
    G, H, M, K = q.shape
    if q.device.type != "cpu" or torch.is_grad_enabled() or H * M * M > 4 * SCORES_AT_ONCE:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # Plain products beat torch's fused kernel here, which is made for longer heads.
    mixed = torch.empty(G, M, H, K, dtype=q.dtype)  # laid out as the caller needs it
    q, k, v = ((q * K**-0.5).reshape(-1, M, K), k.reshape(-1, M, K), v.reshape(-1, M, K))
    most = max(1, SCORES_AT_ONCE // (H * M * M))
    start = 0
    while start < G:
        # Powers of two, so that there are few shapes (see `packing`).
        stop = start + (1 << (min(most, G - start).bit_length() - 1))
        rows = slice(start * H, stop * H)  # of q, k, v: (G * H, M, K)
        part = bias if bias is None or len(bias) == 1 else bias[start:stop]
        weighed = _weigh(q[rows], k[rows], v[rows], H, part, unbiased)  # (g * H, M, K)
        mixed[start:stop] = weighed.view(-1, H, M, K).transpose(1, 2)
        start = stop
    return mixed.transpose(1, 2)


def _weigh(
    q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None, unbiased: int
) -> Tensor:
    """softmax(q k^T + bias) v for some texts, the heads of all in a row: (g * H, M, K)."""
    scores = torch.bmm(q, k.transpose(1, 2))  # (g * H, M, M)
    if bias is not None:
        by_text = scores.view(-1, heads, *scores.shape[1:])  # (g, H, M, M)
        by_text[..., unbiased:] += bias[..., unbiased:]
    if q.dtype == torch.float32:
        return torch.bmm(scores.softmax(dim=-1), v)
    # A softmax takes the largest score off first, so that no power overflows. In bfloat16 that is
    # most of its time, and powers rarely leave the range: so without, and the sums tell.
    total = scores.exp_().sum(dim=-1, keepdim=True)  # (g * H, M, 1)
    least, largest = total.aminmax()
    if least > 1e-30 and largest < 1e36:
        return torch.bmm(scores, v) / total
    return _weigh(q.float(), k.float(), v.float(), heads, bias, unbiased)


class Texts(NamedTuple):
    """A group of texts, with what its attention scores are told beside queries and keys.

    Attributes:
        group: which rows the texts are.
        bias: padding, causality, distance, broadcast over (G, H, M, M); None if there is nothing.
        unbiased: the bias is zero for so many keys from the front.
        at: (M,) or (G, 1, M) places, for rotary positions.
    """

    group: Group
    bias: Tensor | None
    unbiased: int
    at: Tensor | None


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        D, self.heads = config.hidden_size, config.heads
        self.qkv = Linear(D, 3 * D)
        self.output = Linear(D, D)
        self.relative_key: RelativeKey | None = None
        if config.relative == "relative_key":
            self.relative_key = RelativeKey(config.positions, D // self.heads)

    def forward(self, x: Tensor, batch: Sequence[Texts]) -> Tensor:
        N, D = x.shape
        qkv = self.qkv(x).view(N, 3, self.heads, D // self.heads)  # (N, 3, H, K)
        mixed = qkv.new_empty(N, self.heads, D // self.heads)  # (N, H, K)
        for texts in batch:
            texts.group.put(self._mix(qkv, texts), mixed)
        mixed[batch[-1].group.runs[-1].rows.stop :] = 0  # rows that are no text's
        out: Tensor = self.output(mixed.view(N, D))  # (N, D)
        return out

    def _mix(self, qkv: Tensor, texts: Texts) -> Tensor:
        """Attention inside each text of a group: rows (N, 3, H, K) -> (G, H, M, K)."""
        q, k, v = texts.group.heads(qkv)  # three of (G, H, M, K)
        bias, unbiased = texts.bias, texts.unbiased
        if texts.at is not None:
            q, k = rotate(q, texts.at), rotate(k, texts.at)
        if self.relative_key is not None:
            bias, unbiased = combine(bias, self.relative_key(q)), 0
        return attend(q, k, v, bias, unbiased)


class MLP(nn.Module):
    """Two linear maps with an activation between, applied to each token alone."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        D, wide = config.hidden_size, config.intermediate_size
        self.expand = Linear(D, wide, activation=config.activation)
        self.contract = Linear(wide, D)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.contract(self.expand(x))  # (N, D) -> (N, intermediate) -> (N, D)
        return out


class Block(nn.Module):
    """BERT: norm(x + attention(x)), norm(x + mlp(x)). GPT-2: x + attention(norm(x)), and so on."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, batch: Sequence[Texts]) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), batch)  # float32 + dtype = float32
            x = x + self.mlp(self.mlp_norm(x))
        else:
            x = self.attention_norm(x + self.attention(x, batch))
            x = self.mlp_norm(x + self.mlp(x))
        return x


class Transformer(nn.Module):
    """A stack of blocks: rows (N, D) -> (N, D). With no blocks it hands its input through."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.causal = config.causal
        self.rotary = config.relative == "rotary"
        self.buckets = BucketBias(config.heads) if config.relative == "buckets" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm: nn.Module = nn.Identity()
        if config.final_norm:
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        batch = [self.texts(group, x.device) for group in groups]
        for block in self.blocks:
            x = block(x, batch)
        out: Tensor = self.norm(x)
        return out

    def texts(self, group: Group, device: torch.device) -> Texts:
        """What attention in every block is told about a group."""
        M, dtype, at = group.length, self.compute_dtype, None
        bias = combine(
            None if group.real is None else padding_mask(group.real, dtype),  # (G, 1, 1, M)
            causal_mask(M, dtype, device) if self.causal else None,  # (1, 1, M, M)
            None if self.buckets is None else self.buckets(M).to(dtype),  # (1, H, M, M)
        )
        if self.rotary:
            at = torch.arange(M, device=device)  # (M,)
            if group.real is not None:
                at = places(group.real)[:, None, :]  # (G, 1, M), the same for every head
        padding_alone = not self.causal and self.buckets is None
        return Texts(group, bias, group.unpadded if padding_alone else 0, at)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the products, and so of the scores; float32 while training."""
        maps = (part for part in self.blocks.modules() if isinstance(part, Linear))
        first = next(maps, None)
        return torch.float32 if first is None or torch.is_grad_enabled() else first.compute_dtype
