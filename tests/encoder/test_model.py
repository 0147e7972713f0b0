"""The encoder as a network: masks, pooling, batches, and what may not change a vector."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragembed import PoolingEncoder
from ragembed.config import EncoderConfig, Pooling
from ragembed.encoder.batches import SMALL_BATCH_TOKENS, pad, plan_batches
from ragembed.encoder.device import choose_device, choose_dtype
from ragembed.encoder.packing import Packed, Run, common_length, round_rows
from ragembed.encoder.pooling import pool
from ragembed.errors import EncodingFailed, InvalidInput
from ragembed.tokenizer import HuggingFaceTokenizer

SMALL = PoolingEncoder(
    EncoderConfig(
        vocabulary_size=50,
        hidden_size=16,
        layers=2,
        heads=4,
        intermediate_size=32,
        positions=64,
        max_length=64,
        relative="buckets",
    ),
    HuggingFaceTokenizer(
        b'{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}',
        "none",
    ),
).eval()
GOLDEN = [0.0076299, 0.0670633, -0.0380133, 0.0404233, -0.0174065]
FINGERPRINT = "d871e94b1cab53affca176bd27b2b68b5fcd0df9101f09b636e5d738dfb2eaa8"
TEXTS = ["A cat sat on the mat.", "Weevils eat grain.", "Ships sail to Valparaíso in spring."]


@pytest.mark.parametrize(
    "mode", ["mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken"]
)
def test_pooling_looks_at_real_tokens_only(mode: Pooling) -> None:
    tokens = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [100.0, 100.0]]])
    expected = {
        "mean": [2.0, -3.0],
        "cls": [1.0, -4.0],
        "max": [3.0, -2.0],
        "mean_sqrt_len": [4 / 2**0.5, -6 / 2**0.5],
        "weightedmean": [7 / 3, -8 / 3],
        "lasttoken": [3.0, -2.0],
    }
    right = pool(tokens, torch.tensor([[1, 1, 0]]), [mode])
    left = pool(tokens.roll(1, dims=1), torch.tensor([[0, 1, 1]]), [mode])
    assert torch.allclose(right, torch.tensor([expected[mode]]))
    assert torch.allclose(left, right)


def test_several_poolings_are_concatenated_in_order() -> None:
    tokens = torch.tensor([[[1.0, -4.0], [3.0, -2.0]]])
    assert pool(tokens, None, ["lasttoken", "mean"]).tolist() == [[3.0, -2.0, 2.0, -3.0]]


def test_a_prompt_can_be_left_out_of_the_pooling() -> None:
    tokens = torch.tensor([[[9.0], [9.0], [1.0], [3.0], [7.0]]])
    right, left = torch.tensor([[1, 1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1, 1]])
    every: list[Pooling] = ["cls", "mean", "max", "weightedmean", "lasttoken"]
    expected = torch.tensor([[1.0, 2.0, 3.0, 15 / 7, 3.0]])
    assert torch.allclose(pool(tokens, right, every, skip=2), expected)
    assert torch.allclose(
        pool(tokens.roll(1, dims=1), left, every, skip=2), pool(tokens, right, every, skip=2)
    )


def test_golden_vector(encoder: PoolingEncoder) -> None:
    vector = encoder.encode(["The zyzzyva is a tropical weevil."])[0]
    assert np.allclose(vector[:5], GOLDEN, atol=2e-6), vector[:5].tolist()
    assert encoder.fingerprint == FINGERPRINT


def test_vectors_are_unit_float32_in_the_order_given(encoder: PoolingEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.dimension)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.allclose(vectors, alone, atol=1e-6)
    assert np.allclose(encoder.encode(TEXTS[::-1]), vectors[::-1], atol=1e-6)


def test_nothing_in_gives_nothing_out(encoder: PoolingEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_a_blank_text_is_refused_by_number(encoder: PoolingEncoder, blank: str) -> None:
    with pytest.raises(InvalidInput, match="text 2 is blank"):
        encoder.encode(["a", blank])


def test_a_string_is_not_a_list_of_texts(encoder: PoolingEncoder) -> None:
    with pytest.raises(InvalidInput, match="list"):
        encoder.encode("one text")


def test_long_texts_are_never_cut_silently(encoder: PoolingEncoder) -> None:
    long = "weevil " * 400
    with pytest.raises(InvalidInput, match=r"text 2 has .* tokens and the model reads 256"):
        encoder.encode_document(["short", long])
    cut = encoder.encode_document([long], long="truncate")
    ids = encoder.tokenizer.model_inputs([long])[0]
    short = encoder.tokenizer.model_inputs(["weevil " * 80])[0]
    assert len(ids) > 256 > len(short)
    mean = encoder.encode_document([long, "short"], long="mean")
    assert np.allclose(np.linalg.norm(mean, axis=1), 1, atol=1e-6)
    assert np.allclose(mean[1], encoder.encode(["short"])[0], atol=1e-6)
    assert not np.allclose(mean[0], cut[0], atol=1e-4)


def test_mean_of_pieces_is_weighted_by_tokens(encoder: PoolingEncoder) -> None:
    words = [f"word{n}" for n in range(200)]
    text = " ".join(words)
    ids = encoder.tokenizer.model_inputs([text])[0]
    room = encoder.config.max_length - 2
    body = ids[1:-1]
    pieces = [[ids[0], *body[n : n + room], ids[-1]] for n in range(0, len(body), room)]
    with torch.inference_mode():
        parts = np.concatenate([encoder(torch.tensor([piece])).numpy() for piece in pieces])
    summed = (parts * np.array([[len(piece)] for piece in pieces])).sum(axis=0)
    expected = summed / np.linalg.norm(summed)
    assert np.allclose(encoder.encode([text], long="mean")[0], expected, atol=1e-5)


def test_a_vector_that_is_not_finite_is_an_error(encoder: PoolingEncoder) -> None:
    broken = copy.deepcopy(encoder)
    with torch.no_grad():
        broken.front_end.norm.weight[0] = torch.nan
    with pytest.raises(EncodingFailed, match="begins 'weevil"):
        broken.encode(["weevil"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_halves_the_batch(
    encoder: PoolingEncoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: RuntimeError,
) -> None:
    expected = encoder.encode(TEXTS * 4)
    forward = PoolingEncoder.forward_packed

    def tight(self: PoolingEncoder, packed: Packed, *, skip: int = 0) -> torch.Tensor:
        if sum(group.count for group in packed.groups) > 2:
            raise error
        return forward(self, packed, skip=skip)

    monkeypatch.setattr(PoolingEncoder, "forward_packed", tight)
    assert np.allclose(encoder.encode(TEXTS * 4), expected, atol=1e-6)
    assert "out of memory" in caplog.text


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(64, 4096), st.booleans())
@settings(deadline=None)
def test_batches_hold_each_text_once_within_the_budget(
    lengths: list[int], budget: int, padded: bool
) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = plan_batches(array, budget, padded=padded)
    assert sorted(n for batch in batches for n in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        real = int(array[batch].sum())
        size = int(array[batch].max()) * len(batch) if padded else real
        assert size <= budget or len(batch) == 1
        assert size - real <= 0.05 * size or size <= SMALL_BATCH_TOKENS


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(deadline=None, max_examples=30)
def test_packed_or_padded_the_vectors_are_the_same(lengths: list[int]) -> None:
    pieces = [list(range(2, 2 + length)) for length in sorted(lengths, reverse=True)]
    packed = Packed.of(pieces, pad_id=0)
    assert sum(group.count for group in packed.groups) == len(pieces)
    with torch.inference_mode():
        found = SMALL.forward_packed(packed)
        expected = SMALL(*pad(pieces, 0, torch.device("cpu")))
    assert torch.allclose(found, expected, atol=1e-5)


def test_few_shapes_reach_the_matrix_library() -> None:
    assert len({round_rows(rows) for rows in range(1, 2049)}) == 4 + 15
    assert len({common_length(Run(0, 1, length)) for length in range(1, 257)}) == 32
    assert common_length(Run(0, 5, 252)) == 252


def test_unknown_device_and_dtype() -> None:
    with pytest.raises(InvalidInput, match="device 'quantum'"):
        choose_device("quantum")
    with pytest.raises(InvalidInput, match="dtype 'int3'"):
        choose_dtype("int3", torch.device("cpu"))  # type: ignore[arg-type]


def test_weights_stay_in_float32_whatever_is_computed_in() -> None:
    half = PoolingEncoder.from_pretrained(dtype="bfloat16", device="cpu")
    assert half.compute_dtype == torch.bfloat16
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    with torch.inference_mode():
        ids = torch.tensor([half.model_inputs(["weevil"])[0]])
        assert half.token_vectors(ids).dtype == torch.float32


def test_bfloat16_is_close_and_compatible(encoder: PoolingEncoder) -> None:
    half = PoolingEncoder.from_pretrained(dtype="bfloat16", device="cpu")
    cosines = (half.encode(TEXTS) * encoder.encode(TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.9999
    assert half.fingerprint == encoder.fingerprint


def test_a_shape_that_cannot_be() -> None:
    with pytest.raises(InvalidInput, match="not a multiple"):
        EncoderConfig(
            vocabulary_size=9,
            hidden_size=10,
            layers=1,
            heads=3,
            intermediate_size=4,
            positions=8,
            max_length=8,
        )
