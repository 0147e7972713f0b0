"""Batches under a token budget, and running out of memory without ending the run.

What limits a CPU is the number of tokens that go through the matrix products and the passes over
memory between them; so texts are packed without padding (see `packing`), and batches are small
enough for their activations to stay in the cache. On a GPU a batch is padded and large.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger(__name__)

# Tried on two cores: of 500 to 8,000 tokens, 1,000 to 2,000 were best, by a few percent.
CPU_BATCH_TOKENS = 1536
GPU_BATCH_TOKENS = 131_072
# A batch smaller than this takes in texts of other lengths, at the price of padding them.
SMALL_BATCH_TOKENS = 512
MAX_PADDING = 0.05
# Unlike a GPU, a CPU has no error of its own for this; torch says one of these.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")

Pieces = Sequence[Sequence[int]]  # token ids of each text
Network = Callable[[Pieces], Tensor]  # B texts to a tensor (B, ...)


def plan_batches(
    lengths: NDArray[np.int64], batch_tokens: int, *, padded: bool
) -> list[NDArray[np.int64]]:
    """Which texts go together: longest first, so that running out of memory shows at once.

    Args:
        lengths: (n,) tokens of each text.
        batch_tokens: most tokens in a batch, padding included (a single longer text stands alone).
        padded: the batch will be padded to its longest text, so texts of different lengths meet
            only where padding is at most 5 % of it, or where it would be very small.

    Returns:
        Index arrays that together hold 0..n-1 once each, by falling length.

    >>> lengths = np.array([3, 900, 3, 900, 3])
    >>> [batch.tolist() for batch in plan_batches(lengths, 1000, padded=True)]
    [[1], [3], [0, 2, 4]]
    >>> [batch.tolist() for batch in plan_batches(lengths, 1000, padded=False)]
    [[1], [3, 0, 2, 4]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end, real = start, 0
        while end < len(order):
            grown = real + int(lengths[order[end]])
            size = (end - start + 1) * longest if padded else grown
            if end > start and size > batch_tokens:
                break
            if size - grown > MAX_PADDING * size and size > SMALL_BATCH_TOKENS:
                break
            end, real = end + 1, grown
        batches.append(order[start:end])
        start = end
    return batches


def run_batch(network: Network, pieces: Pieces) -> NDArray[np.float32]:
    """One forward pass; where memory runs out the batch is halved and the run goes on.

    Args:
        network: takes lists of token ids, gives a tensor with one row a list.
        pieces: B lists of token ids, none empty, by falling length.

    Returns:
        What the network gave, float32, (B, ...).
    """
    try:
        with torch.inference_mode():
            array: NDArray[np.float32] = network(pieces).float().cpu().numpy()
            return array
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not _out_of_memory(error) or len(pieces) == 1:
            raise
    half = len(pieces) // 2
    logger.warning("out of memory with %d texts in a batch; going on with %d", len(pieces), half)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return np.concatenate([run_batch(network, part) for part in (pieces[:half], pieces[half:])])


def pad(pieces: Pieces, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Token ids (B, L) and mask (B, L), 1 = real, 0 = padding on the right; None where there is none."""
    lengths = np.array([len(piece) for piece in pieces])
    real = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
    mask = None if real.all() else torch.from_numpy(real).to(device)
    return torch.from_numpy(ids).to(device), mask


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(said in str(error) for said in _NO_MEMORY)
