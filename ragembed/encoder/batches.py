"""Batches under a token budget, and running out of memory without ending the run.

What limits a CPU is the number of tokens that go through the matrix products, padding included, and
the passes over memory between them; so texts of equal length share a batch (no padding, no mask),
and batches are small enough for their activations to stay in the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger(__name__)

# Tried on two cores, 1,000 to 4,000 tokens differed little and 8,000 was slower.
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 131_072
# A batch smaller than this takes in texts of other lengths, at the price of padding them.
SMALL_BATCH_TOKENS = 512
MAX_PADDING = 0.05
# Unlike a GPU, a CPU has no error of its own for this; torch says one of these.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")

Network = Callable[[Tensor, Tensor | None], Tensor]


def plan_batches(lengths: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Which texts go together: longest first, so that running out of memory shows at once.

    Args:
        lengths: (n,) tokens of each text.
        batch_tokens: most tokens in a batch, padding included (a single longer text stands alone).

    Returns:
        Index arrays that together hold 0..n-1 once each. Texts of different lengths meet only
        where padding is at most 5 % of the batch, or where the batch would be very small.

    >>> [batch.tolist() for batch in plan_batches(np.array([3, 900, 3, 900, 3]), 1000)]
    [[1], [3], [0, 2, 4]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end, real = start, 0
        while end < len(order):
            padded = (end - start + 1) * longest
            grown = real + int(lengths[order[end]])
            if end > start and padded > batch_tokens:
                break
            if padded - grown > MAX_PADDING * padded and padded > SMALL_BATCH_TOKENS:
                break
            end, real = end + 1, grown
        batches.append(order[start:end])
        start = end
    return batches


def run_batch(
    network: Network, pieces: Sequence[Sequence[int]], device: torch.device, pad_id: int
) -> NDArray[np.float32]:
    """One forward pass; where memory runs out the batch is halved and the run goes on.

    Args:
        network: ids (B, L) and mask (B, L), or None where nothing is padded, to (B, ...).
        pieces: B lists of token ids, none empty.
        device: where the network is.
        pad_id: fills up shorter texts on the right.

    Returns:
        What the network gave, float32, (B, ...).
    """
    lengths = [len(piece) for piece in pieces]
    ids = np.full((len(pieces), max(lengths)), pad_id, dtype=np.int64)
    for row, piece in zip(ids, pieces, strict=True):
        row[: len(piece)] = piece
    real = None
    if min(lengths) < max(lengths):
        mask = np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
        real = torch.from_numpy(mask).to(device)
    try:
        with torch.inference_mode():
            out = network(torch.from_numpy(ids).to(device), real)
            array: NDArray[np.float32] = out.float().cpu().numpy()
            return array
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not _out_of_memory(error) or len(pieces) == 1:
            raise
    half = len(pieces) // 2
    logger.warning("out of memory with %d texts in a batch; going on with %d", len(pieces), half)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    parts = [run_batch(network, part, device, pad_id) for part in (pieces[:half], pieces[half:])]
    return np.concatenate(parts)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(said in str(error) for said in _NO_MEMORY)
