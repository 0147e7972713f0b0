"""Front end of the encoder: a token embedding plus a position embedding, then LayerNorm.

Shapes: B texts of L tokens, or rows of tokens; D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ragembed.config import EncoderConfig
from ragembed.encoder.positions import sinusoidal
from ragembed.encoder.table import Table


class TokenEmbedding(Table):
    """A table with one row a token id: (B, L) ids -> (B, L, D).

    A lookup is the same as multiplying the one-hot vector of the id with the table, without the
    multiplication.

    >>> _ = torch.manual_seed(123)
    >>> TokenEmbedding(6, 3)(torch.tensor([3])).detach()
    tensor([[-0.4015,  0.9666, -1.1481]])
    """


class LearnedPositions(nn.Module):
    """Learned absolute positions: row p is added to whatever token stands at place p."""

    def __init__(self, positions: int, hidden_size: int) -> None:
        super().__init__()
        self.table = Table(positions, hidden_size)

    def forward(self, places: Tensor) -> Tensor:
        vectors: Tensor = self.table(places)  # (...) -> (..., D)
        return vectors


class SinusoidalPositions(nn.Module):
    """Fixed absolute positions: nothing is learned, and no length is too long."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, places: Tensor) -> Tensor:
        flat = sinusoidal(places.reshape(-1), self.hidden_size)
        return flat.view(*places.shape, self.hidden_size)  # (...) -> (..., D)


class FrontEnd(nn.Module):
    """ids -> LayerNorm(token vector + position vector).

    Relative kinds of position are added nowhere here: they act inside attention. BERT adds the
    vector of segment 0 to every token as well; it is the same for all of them, so the loader folds
    it into the position table and no third table is left.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.token = TokenEmbedding(config.vocabulary_size, config.hidden_size)
        self.position: nn.Module | None = None
        if config.position == "learned":
            self.position = LearnedPositions(config.positions, config.hidden_size)
        elif config.position == "sinusoidal":
            self.position = SinusoidalPositions(config.hidden_size)
        self.norm: nn.Module = nn.Identity()
        if config.front_norm:
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, places: Tensor | None = None) -> Tensor:
        """Token ids (..., L) to vectors (..., L, D).

        `places`, of the ids' shape or (L,), are the places of the tokens in their texts; without
        them a text is taken to begin at the first column.
        """
        x = self.token(ids)  # (..., L, D)
        if self.position is not None:
            if places is None:
                places = torch.arange(ids.shape[-1], device=ids.device)  # (L,)
            x = x + self.position(places)
        normed: Tensor = self.norm(x)
        return normed
