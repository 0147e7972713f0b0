"""Checkpoints of every family give the vectors that sentence-transformers gives, read and written."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ragembed import PoolingEncoder

pytest.importorskip("sentence_transformers", reason="comes with the weights package")
pytestmark = pytest.mark.filterwarnings("default")

_FILE = Path(__file__).parents[1] / "checkpoints.py"
_SPEC = importlib.util.spec_from_file_location("checkpoints", _FILE)
assert _SPEC is not None and _SPEC.loader is not None
checkpoints: ModuleType = importlib.util.module_from_spec(_SPEC)
sys.modules["checkpoints"] = checkpoints
_SPEC.loader.exec_module(checkpoints)

TEXTS: list[str] = checkpoints.TEXTS
NATIVE = [name for name in checkpoints.FAMILIES if "AutoModel" not in name]


def load(folder: Path) -> PoolingEncoder:
    return PoolingEncoder.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=list(checkpoints.FAMILIES))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, np.ndarray]]:
    """A family's name, the folder of a checkpoint, and its vectors as the checkpoint makes them."""
    folder = tmp_path_factory.mktemp("family")
    reference = checkpoints.write(folder, request.param)
    yield request.param, folder / "model", reference.encode(TEXTS)


def test_vectors_are_the_reference_implementations(family: tuple[str, Path, np.ndarray]) -> None:
    name, folder, expected = family
    encoder = load(folder)
    assert (encoder.trunk is None) == (name in NATIVE)
    found = encoder.encode(TEXTS, normalize=False)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-5 * max(1, np.abs(expected).max())
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert (encoder.encode(TEXTS) * unit).sum(axis=1).min() >= 0.999999


def test_saved_it_is_the_same_for_both(
    family: tuple[str, Path, np.ndarray], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    _, folder, expected = family
    encoder = load(folder)
    encoder.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.config == encoder.config
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS)
    assert np.abs(theirs - expected).max() < 2e-5 * max(1, np.abs(expected).max())


def test_batching_and_padding_change_nothing(family: tuple[str, Path, np.ndarray]) -> None:
    _, folder, _ = family
    encoder = load(folder)
    ids = [encoder.model_inputs([text])[0] for text in TEXTS[:4]]
    length = max(map(len, ids)) + 3
    alone = torch.cat([_forward(encoder, [one], [[1] * len(one)]) for one in ids])
    pad = encoder.config.pad_id
    right = [one + [pad] * (length - len(one)) for one in ids]
    right_mask = [[1] * len(one) + [0] * (length - len(one)) for one in ids]
    together = _forward(encoder, right, right_mask)
    assert torch.allclose(together, alone, atol=2e-6)
    if encoder.trunk is None:  # transformers' own models count positions from the padding on
        left = [[pad] * (length - len(one)) + one for one in ids]
        left_mask = [mask[::-1] for mask in right_mask]
        assert torch.allclose(_forward(encoder, left, left_mask), alone, atol=2e-6)


def _forward(encoder: PoolingEncoder, ids: list[list[int]], mask: list[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        vectors = encoder(torch.tensor(ids), torch.tensor(mask))
        return torch.nn.functional.normalize(vectors, dim=-1)


def test_with_gradients_the_vectors_are_the_same(family: tuple[str, Path, np.ndarray]) -> None:
    _, folder, _ = family
    encoder = load(folder)
    ids = torch.tensor(encoder.model_inputs(TEXTS[:1]))
    with torch.inference_mode():
        expected = encoder(ids)
    found = encoder(ids)
    assert torch.allclose(found, expected, atol=1e-5)
    found.sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "pooler" not in name)


def test_a_model2vec_folder(tmp_path: Path) -> None:
    checkpoints.write_model2vec(tmp_path)
    encoder = load(tmp_path)
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    tensors = load_file(tmp_path / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
        ids = ids[ids != tokenizer.token_to_id("[UNK]")]
        rows = tensors["embeddings"][tensors["mapping"][ids]] * tensors["weights"][ids, None]
        mean = rows.mean(axis=0)
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    # a text of nothing but unknown tokens still has a vector
    assert np.isclose(np.linalg.norm(encoder.encode(["𓀀"])), 1, atol=1e-5)


def test_prompts_left_out_of_the_pooling(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    checkpoints.write_trunk(checkpoints.bert, tmp_path / "trunk")
    pooling = Pooling(checkpoints.SIZE, pooling_mode="mean", include_prompt=False)
    reference = SentenceTransformer(
        modules=[Transformer(str(tmp_path / "trunk")), pooling],
        prompts={"query": "query: ", "document": "passage: "},
        device="cpu",
    )
    reference.save(str(tmp_path / "model"))
    encoder = load(tmp_path / "model")
    assert encoder.prompts == {"query": "query: ", "document": "passage: "}
    for ours, theirs in (
        (encoder.encode_query(TEXTS), reference.encode_query(TEXTS, normalize_embeddings=True)),
        (
            encoder.encode_document(TEXTS),
            reference.encode_document(TEXTS, normalize_embeddings=True),
        ),
        (encoder.encode(TEXTS), reference.encode(TEXTS, normalize_embeddings=True)),
    ):
        assert np.abs(ours - theirs).max() < 1e-5


def test_matryoshka_dimensions(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    checkpoints.write(tmp_path, "BERT")
    short = PoolingEncoder.from_pretrained(
        tmp_path / "model", device="cpu", dtype="float32", truncate_dim=16
    )
    reference = SentenceTransformer(str(tmp_path / "model"), device="cpu", truncate_dim=16)
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    assert short.dimension == 16
    assert np.abs(short.encode(TEXTS) - expected).max() < 1e-5
    assert short.fingerprint != load(tmp_path / "model").fingerprint
    short.save(tmp_path / "saved")
    assert load(tmp_path / "saved").dimension == 16
