"""Encoding: streams, prompts, long texts, tokens, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from ragembed import PoolingEncoder
from ragembed.encoder import inference
from ragembed.errors import InvalidInput

TEXTS = ["A cat sat on the mat.", "Weevils eat grain.", "Ships sail to Valparaíso in spring."]


def test_any_iterable_will_do(encoder: PoolingEncoder) -> None:
    expected = encoder.encode(TEXTS)
    assert np.allclose(encoder.encode(text for text in TEXTS), expected, atol=1e-6)
    assert np.allclose(encoder.encode(dict.fromkeys(TEXTS)), expected, atol=1e-6)
    assert encoder.encode(iter([])).shape == (0, 384)


def test_a_stream_takes_texts_only_as_it_gives_vectors(
    encoder: PoolingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "POOL_CHARACTERS", 60)
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for n in range(40):
            taken += 1
            yield TEXTS[n % 3]

    blocks = encoder.encode_stream(texts())
    first = next(blocks)
    assert taken < 6
    rest = np.concatenate([first, *blocks])
    assert taken == 40
    assert np.allclose(rest, encoder.encode(TEXTS * 14)[:40], atol=1e-6)


def test_numbers_in_errors_count_from_the_first_text_of_all(
    encoder: PoolingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "POOL_CHARACTERS", 40)
    with pytest.raises(InvalidInput, match="text 7 is blank"):
        encoder.encode([*TEXTS, *TEXTS, " "])
    with pytest.raises(InvalidInput, match=r"text 4 has .* tokens"):
        encoder.encode([*TEXTS, "weevil " * 400])
    with pytest.raises(InvalidInput, match="text 2 is of type int"):
        encoder.encode(["a", 3])  # type: ignore[list-item]


def test_memory_of_a_stream_does_not_grow_with_the_input(
    encoder: PoolingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "POOL_CHARACTERS", 2_000)

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in encoder.encode_stream(f"text number {n}" for n in range(count)):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(200)
    assert peak(2_000) < 2 * peak(200)


def test_pieces_of_a_long_text_lose_no_token(encoder: PoolingEncoder) -> None:
    text = " ".join(f"word{n}" for n in range(500))
    ids = encoder.model_inputs([text], prompt="query: ")[0]
    before, after = encoder.frame("query: ")
    job = inference.Job(prompt="query: ", long="mean")
    pieces = inference._cut(encoder, ids, job, 1)
    assert all(len(piece) <= encoder.config.max_length for piece in pieces)
    assert all(piece[: len(before)] == before and piece[-1:] == after for piece in pieces)
    body = [n for piece in pieces for n in piece[len(before) : len(piece) - len(after)]]
    assert body == ids[len(before) : len(ids) - len(after)]


def test_token_vectors_and_their_spans(encoder: PoolingEncoder) -> None:
    found = encoder.encode_tokens(TEXTS)
    for text, tokens in zip(TEXTS, found, strict=True):
        assert tokens.vectors.shape == (len(tokens.offsets), 384)
        assert tokens.vectors.dtype == np.float32
        assert text.startswith(text[slice(*tokens.offsets[0])])
        assert text[slice(*tokens.offsets[-1])] == "."
    # A mean-pooling model's vector is the mean over these and its two special tokens.
    import torch

    with torch.inference_mode():
        ids = torch.tensor(encoder.model_inputs(TEXTS[:1]))
        whole = encoder.token_vectors(ids)[0].numpy()
    assert np.allclose(whole[1:-1], found[0].vectors, atol=1e-5)
    with pytest.raises(InvalidInput, match=r"text 1 has .* tokens"):
        encoder.encode_tokens(["weevil " * 400])


def test_raw_vectors_on_request(encoder: PoolingEncoder) -> None:
    raw = encoder.encode(TEXTS, normalize=False)
    assert np.allclose(raw, encoder.encode(TEXTS), atol=1e-6)  # this checkpoint normalises itself
