"""Running the encoder: tokenise, cut what is too long, encode in batches, restore the order.

Texts are taken as they come, about POOL_CHARACTERS at a time, so memory does not grow with the
input; within a pool they are batched by length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ragembed.encoder.batches import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    Pieces,
    pad,
    plan_batches,
    run_batch,
)
from ragembed.encoder.checks import checked
from ragembed.encoder.packing import Packed
from ragembed.errors import EncodingFailed, InvalidInput, ModelError

if TYPE_CHECKING:
    from ragembed.encoder.model import PoolingEncoder

LongText = Literal["error", "truncate", "mean"]

# English has about four characters a token: a pool is about a million tokens.
POOL_CHARACTERS = 4_000_000
# A static encoder does so little with a token that larger batches pay.
STATIC_BATCH_TOKENS = 16_384

_SLIVER = 1e-12  # shorter vectors have no direction


@dataclass(frozen=True, kw_only=True)
class Job:
    """How one call wants its texts encoded.

    Attributes:
        prompt: put in front of each text.
        long: what to do with a text of more tokens than the model reads.
        normalize: scale the vectors to unit length.
        advance: told how many texts are done.
    """

    prompt: str = ""
    long: LongText = "error"
    normalize: bool = True
    advance: Callable[[int], None] = lambda count: None


@dataclass(frozen=True, slots=True)
class _Pool:
    """Texts that are encoded together; `first` is the place of the first among all."""

    first: int
    texts: list[str]

    def number(self, n: int) -> int:
        return self.first + n + 1


def encode_stream(
    encoder: PoolingEncoder, texts: Iterable[str], job: Job
) -> Iterator[NDArray[np.float32]]:
    """Vectors of texts in their order, a block at a time, (n, d) float32 each."""
    if job.long not in get_args(LongText):
        raise InvalidInput(f"long is {job.long!r}; one of {', '.join(get_args(LongText))} is due")
    for pool in _pools(texts):
        yield _encode_pool(encoder, pool, job)


def _pools(texts: Iterable[str]) -> Iterator[_Pool]:
    first, pool, size = 0, list[str](), 0
    for n, text in enumerate(checked(texts)):
        if pool and size + len(text) > POOL_CHARACTERS:
            yield _Pool(first, pool)
            first, pool, size = n, [], 0
        pool.append(text)
        size += len(text)
    if pool:
        yield _Pool(first, pool)


def _encode_pool(encoder: PoolingEncoder, pool: _Pool, job: Job) -> NDArray[np.float32]:
    pieces: list[list[int]] = []
    owners: list[int] = []
    for n, ids in enumerate(encoder.model_inputs(pool.texts, prompt=job.prompt)):
        cut = _cut(encoder, ids, job, pool.number(n))
        pieces += cut
        owners += [n] * len(cut)
    vectors = _encode_pieces(encoder, pieces, owners, job)
    if len(pieces) > len(pool.texts):
        vectors = _average(encoder, vectors, pieces, owners, len(pool.texts))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~np.isfinite(norms[:, 0]) | (norms[:, 0] < _SLIVER)
    if bad.any():
        n = int(np.flatnonzero(bad)[0])
        kind = "is not finite" if not np.isfinite(norms[n, 0]) else "has no length"
        raise EncodingFailed(
            f"the vector of text {pool.number(n)} {kind}; it begins {pool.texts[n][:60]!r}. "
            "Try dtype='float32', or another model if it does not know the text's language"
        )
    return np.asarray(vectors / norms, dtype=np.float32) if job.normalize else vectors


def _cut(encoder: PoolingEncoder, ids: list[int], job: Job, number: int) -> list[list[int]]:
    """Token ids that fit the model: as they are, cut, or in pieces with their own specials."""
    limit = encoder.config.max_length
    if len(ids) <= limit:
        return [ids]
    if job.long == "error":
        raise InvalidInput(
            f"text {number} has {len(ids):,} tokens and the model reads {limit}: cut it "
            "into windows, or say long='truncate' or long='mean'"
        )
    before, after = encoder.frame(job.prompt)
    room = limit - len(before) - len(after)
    if room < 1:
        raise InvalidInput(f"the prompt has {len(before)} tokens and the model reads {limit}")
    first = limit - len(after)
    pieces = [[*ids[:first], *after]]
    if job.long == "mean":
        last = len(ids) - len(after)
        for start in range(first, last, room):
            pieces.append([*before, *ids[start : min(start + room, last)], *after])
    return pieces


def _average(
    encoder: PoolingEncoder,
    vectors: NDArray[np.float32],
    pieces: Sequence[Sequence[int]],
    owners: list[int],
    count: int,
) -> NDArray[np.float32]:
    """long="mean": the pieces of a text, weighted by their tokens, back to one vector."""
    summed = np.zeros((count, encoder.dimension), dtype=np.float32)
    weights = np.array([len(piece) for piece in pieces], dtype=np.float32)
    np.add.at(summed, owners, vectors * weights[:, None])
    mass = np.bincount(owners, weights)[:, None].astype(np.float32)
    return np.asarray(summed / mass, dtype=np.float32)


def _encode_pieces(
    encoder: PoolingEncoder, pieces: list[list[int]], owners: list[int], job: Job
) -> NDArray[np.float32]:
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    vectors = np.zeros((len(pieces), encoder.dimension), dtype=np.float32)
    highest = max(map(max, pieces), default=0)
    if highest >= encoder.config.vocabulary_size:
        raise ModelError(
            f"the tokenizer gave the id {highest:,} and the model's table has "
            f"{encoder.config.vocabulary_size:,} rows: they do not belong together"
        )
    skip = 0 if encoder.config.include_prompt else len(encoder.frame(job.prompt)[0])
    # Without a prompt nothing is left out, not even the special token in front.
    skip = skip if job.prompt else 0
    packs = encoder.trunk is None and encoder.device.type == "cpu"

    def network(some: Pieces) -> Tensor:
        if packs:
            return encoder.forward_packed(Packed.of(some, encoder.config.pad_id), skip=skip)
        ids, real = pad(some, encoder.config.pad_id, encoder.device)
        vectors: Tensor = encoder(ids, real, skip=skip)
        return vectors

    for batch in plan_batches(lengths, batch_tokens(encoder), padded=not packs):
        vectors[batch] = run_batch(network, [pieces[n] for n in batch])
        job.advance(sum(1 for n in batch if n == 0 or owners[n] != owners[n - 1]))
    return vectors


def batch_tokens(encoder: PoolingEncoder) -> int:
    """Most tokens in one batch: what the user said, else a figure for the device."""
    if encoder.inference.batch_tokens:
        return encoder.inference.batch_tokens
    if encoder.device.type != "cpu":
        return GPU_BATCH_TOKENS
    return CPU_BATCH_TOKENS if encoder.layers else STATIC_BATCH_TOKENS


@dataclass(frozen=True, slots=True, eq=False)
class TokenVectors:
    """The vectors of one text's tokens, before pooling.

    Attributes:
        vectors: (n, D) float32, one a token, special tokens left out, not normalised.
        offsets: (n, 2) int32, the span of each token in the text, in code points.
    """

    vectors: NDArray[np.float32]
    offsets: NDArray[np.int32]


def encode_tokens(encoder: PoolingEncoder, texts: Sequence[str]) -> list[TokenVectors]:
    """See `PoolingEncoder.encode_tokens`."""
    found: list[TokenVectors] = []
    for pool in _pools(texts):
        tokens = encoder.tokenizer.encode(pool.texts)
        kept = [encoder.kept(one) for one in tokens]
        before, after = encoder.frame("")
        inputs = []
        for n, (one, keep) in enumerate(zip(tokens, kept, strict=True)):
            inputs.append([*before, *one.ids[keep].tolist(), *after] or [encoder.config.pad_id])
            _cut(encoder, inputs[n], Job(), pool.number(n))  # refuses what is too long
        lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
        arrays: dict[int, NDArray[np.float32]] = {}
        for batch in plan_batches(lengths, batch_tokens(encoder), padded=True):
            out = run_batch(
                lambda some: encoder.token_vectors(
                    *pad(some, encoder.config.pad_id, encoder.device)
                ),
                [inputs[n] for n in batch],
            )
            for row, n in zip(out, batch, strict=True):
                arrays[n] = row[len(before) :][: kept[n].sum()].copy()
        found += [
            TokenVectors(arrays[n], one.offsets[keep])
            for n, (one, keep) in enumerate(zip(tokens, kept, strict=True))
        ]
    return found
