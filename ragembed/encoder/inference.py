"""Running the encoder: tokenise, batch by length under a token budget, encode, restore the order.

What limits a CPU is the number of tokens that go through the matrix products, padding included, and
the passes over memory between them; so texts of equal length share a batch (no padding, no mask),
and batches are small enough for their activations to stay in the cache.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ragembed.config import DType
from ragembed.errors import EncodingFailed, InvalidInput
from ragembed.progress import bar

if TYPE_CHECKING:
    from ragembed.encoder.model import LongText, PoolingEncoder

logger = logging.getLogger(__name__)

# Tried on two cores, 1,000 to 4,000 tokens differed little and 8,000 was slower.
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 131_072
# A batch smaller than this takes in texts of other lengths, at the price of padding them.
SMALL_BATCH_TOKENS = 512
MAX_PADDING = 0.05
# So many tokens are prepared at a time, so that memory does not grow with the input.
POOL_TOKENS = 1_000_000


def choose_device(name: str) -> torch.device:
    """The device to run on; "auto" is CUDA where there is one.

    Raises:
        InvalidInput: torch does not know the device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise InvalidInput(f"device {name!r} cannot be used ({first}); try cpu") from None
    return device


def choose_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products; "auto" is bfloat16 where the device computes in it."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise InvalidInput(f"dtype {name!r} is not one of auto, {', '.join(dtypes)}")
    return dtypes[name]


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; emulated, it is slower than float32."""
    if platform.system() != "Linux":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Put the linear maps into `dtype`; LayerNorm stays in float32."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(dtype)


def encode(
    encoder: PoolingEncoder, texts: Sequence[str], *, long: LongText, progress: bool
) -> NDArray[np.float32]:
    """See `PoolingEncoder.encode`."""
    if isinstance(texts, str):
        raise InvalidInput("texts is one string; give a list of strings")
    for n, text in enumerate(texts):
        if not text.strip():
            raise InvalidInput(f"text {n + 1} of {len(texts)} is blank and has no vector")
    vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)
    with bar("encoding", len(texts), shown=progress) as advance:
        for first, last, inputs in _pools(encoder, texts):
            vectors[first:last] = _encode_pool(encoder, inputs, texts, first, long, advance)
    return vectors


def _pools(
    encoder: PoolingEncoder, texts: Sequence[str]
) -> Iterator[tuple[int, int, list[list[int]]]]:
    """Runs of texts of about POOL_TOKENS tokens with their token ids, specials included."""
    first = 0
    while first < len(texts):
        # Four characters a token is English; a pool of another language is a few times larger.
        sizes = accumulate(len(text) for text in texts[first : first + POOL_TOKENS])
        count = sum(1 for size in sizes if size <= 4 * POOL_TOKENS) or 1
        last = first + count
        yield first, last, encoder.tokenizer.model_inputs(texts[first:last])
        first = last


def _encode_pool(
    encoder: PoolingEncoder,
    inputs: list[list[int]],
    texts: Sequence[str],
    first: int,
    long: LongText,
    advance: Callable[[int], None],
) -> NDArray[np.float32]:
    limit = encoder.config.max_length
    pieces: list[list[int]] = []
    owners: list[int] = []
    for n, ids in enumerate(inputs):
        if len(ids) > limit and long == "error":
            raise InvalidInput(
                f"text {first + n + 1} has {len(ids):,} tokens and the model reads {limit}: cut it "
                "into windows, or say long='truncate' or long='mean'"
            )
        cut = _cut(encoder, ids, long)
        pieces += cut
        owners += [n] * len(cut)
    vectors = _encode_pieces(encoder, pieces, owners, advance)
    if not np.isfinite(vectors).all():
        bad = owners[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
        raise EncodingFailed(
            f"the vector of text {first + bad + 1} is not finite; it begins "
            f"{texts[first + bad][:60]!r}. Try dtype='float32'"
        )
    if len(pieces) == len(inputs):
        return vectors
    # long="mean": the pieces of a text, weighted by their tokens, back to one unit vector
    summed = np.zeros((len(inputs), encoder.dimension), dtype=np.float32)
    weights = np.array([len(piece) for piece in pieces], dtype=np.float32)
    np.add.at(summed, owners, vectors * weights[:, None])
    norms = np.linalg.norm(summed, axis=1, keepdims=True)
    if encoder.config.normalize:
        return np.asarray(summed / norms, dtype=np.float32)
    mass = np.bincount(owners, weights)[:, None]
    return np.asarray(summed / mass, dtype=np.float32)


def _cut(encoder: PoolingEncoder, ids: list[int], long: LongText) -> list[list[int]]:
    """Token ids that fit the model: as they are, cut, or in pieces with their own specials."""
    limit = encoder.config.max_length
    if len(ids) <= limit:
        return [ids]
    before, after = _specials(encoder)
    room = limit - len(before) - len(after)
    body = ids[len(before) : len(ids) - len(after)]
    ends = range(0, room if long == "truncate" else len(body), room)
    return [[*before, *body[start : start + room], *after] for start in ends]


def _specials(encoder: PoolingEncoder) -> tuple[list[int], list[int]]:
    """The special tokens in front of a text and behind it."""
    framed = encoder.tokenizer.model_inputs(["a"])[0]
    bare = encoder.tokenizer.encode(["a"])[0].ids.tolist()
    start = next(n for n in range(len(framed)) if framed[n : n + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


def _encode_pieces(
    encoder: PoolingEncoder,
    pieces: list[list[int]],
    owners: list[int],
    advance: Callable[[int], None],
) -> NDArray[np.float32]:
    device = encoder.device
    budget = encoder.inference.batch_tokens or (
        CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
    )
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    vectors = np.empty((len(pieces), encoder.dimension), dtype=np.float32)
    for batch in plan_batches(lengths, budget):
        vectors[batch] = _encode_batch(encoder, [pieces[n] for n in batch], device)
        advance(sum(1 for n in batch if n == 0 or owners[n] != owners[n - 1]))
    return vectors


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


def _encode_batch(
    encoder: PoolingEncoder, pieces: list[list[int]], device: torch.device
) -> NDArray[np.float32]:
    """One forward pass; where memory runs out the batch is halved and the run goes on."""
    lengths = [len(piece) for piece in pieces]
    ids = np.zeros((len(pieces), max(lengths)), dtype=np.int64)
    for row, piece in zip(ids, pieces, strict=True):
        row[: len(piece)] = piece
    padded = min(lengths) < max(lengths)
    try:
        with torch.inference_mode():
            real = torch.tensor(lengths, device=device) if padded else None
            out = encoder(torch.from_numpy(ids).to(device), real)
            array: NDArray[np.float32] = out.float().cpu().numpy()
            return array
    except torch.OutOfMemoryError:
        if len(pieces) == 1:
            raise
    half = len(pieces) // 2
    logger.warning("out of memory with %d texts in a batch; going on with %d", len(pieces), half)
    torch.cuda.empty_cache()
    return np.concatenate(
        [_encode_batch(encoder, part, device) for part in (pieces[:half], pieces[half:])]
    )
