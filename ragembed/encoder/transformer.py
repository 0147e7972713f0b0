"""The transformer, read from top to bottom: attention, MLP, block, stack.

Post-norm blocks as in BERT (Devlin et al., 2019; arXiv:1810.04805). The matrix products run in the
weights' dtype; the residual stream and LayerNorm stay in float32, which costs almost nothing and
keeps bfloat16 vectors within a cosine of 0.9999 of float32's.

Shapes: B texts, L tokens, D hidden size, H heads, K = D / H per head.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, L, D = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.heads, D // self.heads)  # (B, L, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, H, L, K)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, L, K)
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(B, L, D))  # (B, L, D)
        return out


class MLP(nn.Module):
    """Two linear maps with a GELU between, applied to each token alone."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.expand = nn.Linear(hidden_size, intermediate_size)
        self.contract = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.contract(F.gelu(self.expand(x)))  # D -> intermediate -> D
        return out


class Block(nn.Module):
    """x -> norm(x + attention(x)) -> norm(x + mlp(x)), the residual stream in float32."""

    def __init__(self, hidden_size: int, heads: int, intermediate_size: int, eps: float) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden_size, heads)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = MLP(hidden_size, intermediate_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        dtype = self.attention.qkv.weight.dtype
        x = self.attention_norm(x + self.attention(x.to(dtype), mask))  # float32 + dtype = float32
        x = self.mlp_norm(x + self.mlp(x.to(dtype)))
        return x


class Transformer(nn.Module):
    """A stack of blocks: (B, L, D) -> (B, L, D)."""

    def __init__(
        self, layers: int, hidden_size: int, heads: int, intermediate_size: int, eps: float
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(hidden_size, heads, intermediate_size, eps) for _ in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x
