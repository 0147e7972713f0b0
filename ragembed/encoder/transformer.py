"""The transformer, read from top to bottom: attention, MLP, block, stack.

Post-norm blocks as in BERT (Devlin et al., 2019; arXiv:1810.04805) or pre-norm ones as in GPT-2.
The matrix products run in `compute_dtype` (see `linear.Linear`); the residual stream and LayerNorm
stay in float32, which costs little and keeps bfloat16 vectors within a cosine of 0.9999 of
float32's.

Shapes: B texts, L tokens, D hidden size, H heads, K = D / H per head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragembed.config import EncoderConfig
from ragembed.encoder.linear import Linear
from ragembed.encoder.masks import causal_mask, combine, padding_mask, places
from ragembed.encoder.positions import BucketBias, RelativeKey, rotate

# On a CPU so many scores are computed at a time (4 MB in float32), so that they stay in the cache:
# at 256 tokens twice as fast as all at once. Texts whose scores are more go through torch's own
# blockwise attention.
SCORES_AT_ONCE = 1 << 20


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v: queries, keys, values (B, H, L, K) -> (B, H, L, K).

    `bias` broadcasts to (B, H, L, L).
    """
    B, H, L, K = q.shape
    if q.device.type != "cpu" or torch.is_grad_enabled() or H * L * L > 4 * SCORES_AT_ONCE:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # Three plain products beat torch's fused kernel here, which is made for longer heads.
    mixed = torch.empty(B, L, H, K, dtype=q.dtype).transpose(1, 2)  # laid out as the caller needs
    step = max(1, SCORES_AT_ONCE // (H * L * L))
    for b in range(0, B, step):
        here = slice(b, b + step)
        scores = torch.matmul(q[here] * K**-0.5, k[here].transpose(-1, -2))  # (b, H, L, L)
        if bias is not None:
            scores += bias if len(bias) == 1 else bias[here]
        mixed[here] = torch.matmul(scores.softmax(dim=-1), v[here])
    return mixed


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        D, self.heads = config.hidden_size, config.heads
        self.qkv = Linear(D, 3 * D)
        self.output = Linear(D, D)
        self.rotary = config.relative == "rotary"
        self.relative_key: RelativeKey | None = None
        if config.relative == "relative_key":
            self.relative_key = RelativeKey(config.positions, D // self.heads)

    def forward(self, x: Tensor, bias: Tensor | None, at: Tensor | None = None) -> Tensor:
        B, L, D = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.heads, D // self.heads)  # (B, L, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, H, L, K)
        if self.rotary and at is not None:
            q, k = rotate(q, at), rotate(k, at)
        if self.relative_key is not None:
            bias = combine(bias, self.relative_key(q))
        mixed = attend(q, k, v, bias)  # (B, H, L, K)
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(B, L, D))  # (B, L, D)
        return out


class MLP(nn.Module):
    """Two linear maps with an activation between, applied to each token alone."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        D, wide = config.hidden_size, config.intermediate_size
        self.expand = Linear(D, wide, activation=config.activation)
        self.contract = Linear(wide, D)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.contract(self.expand(x))  # D -> intermediate -> D
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

    def forward(self, x: Tensor, bias: Tensor | None, at: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), bias, at)  # float32 + dtype = float32
            x = x + self.mlp(self.mlp_norm(x))
        else:
            x = self.attention_norm(x + self.attention(x, bias, at))
            x = self.mlp_norm(x + self.mlp(x))
        return x


class Transformer(nn.Module):
    """A stack of blocks: (B, L, D) -> (B, L, D). With no blocks it hands its input through."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.causal = config.causal
        self.rotary = config.relative == "rotary"
        self.buckets = BucketBias(config.heads) if config.relative == "buckets" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm: nn.Module = nn.Identity()
        if config.final_norm:
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """`real` (B, L): 1 = real, 0 = padding, on either side; None: nothing is padded."""
        bias, at = self._bias(x, real), self._places(x, real)
        for block in self.blocks:
            x = block(x, bias, at)
        out: Tensor = self.norm(x)
        return out

    def _bias(self, x: Tensor, real: Tensor | None) -> Tensor | None:
        """What is added to the scores: padding, causality, distance; None if there is nothing."""
        L, dtype = x.shape[1], self.compute_dtype
        return combine(
            None if real is None else padding_mask(real, dtype),  # (B, 1, 1, L)
            causal_mask(L, dtype, x.device) if self.causal else None,  # (1, 1, L, L)
            None if self.buckets is None else self.buckets(L).to(dtype),  # (1, H, L, L)
        )

    def _places(self, x: Tensor, real: Tensor | None) -> Tensor | None:
        if not self.rotary:
            return None
        if real is None:
            return torch.arange(x.shape[1], device=x.device)  # (L,)
        return places(real)[:, None, :]  # (B, 1, L), the same for every head

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the products, and so of the scores; float32 while training."""
        if torch.is_grad_enabled() or len(self.blocks) == 0:
            return torch.float32
        first = self.blocks[0].attention.qkv  # type: ignore[union-attr]
        return first.compute_dtype  # type: ignore[union-attr, return-value]
