"""int8 and binary vectors: bounds of the error, the formats of others, and what is refused."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ragembed import PoolingEncoder
from ragembed.encoder import quantization
from ragembed.encoder.quantization import (
    Calibration,
    from_binary,
    from_int8,
    quantize,
    similarity,
    to_binary,
    to_int8,
)
from ragembed.errors import InvalidInput

SUBJECTS = ["The weevil", "A sailor", "My compiler", "The old library", "Every chess player"]
ACTIONS = [
    "eats grain in the barn",
    "crosses the sea in a storm",
    "refuses to build the program",
    "keeps maps of forgotten towns",
    "plans three moves ahead",
    "sleeps through the winter",
    "costs more than last year",
    "was painted in bright red",
]
TEXTS = [f"{subject} {action}." for subject in SUBJECTS for action in ACTIONS]


@pytest.fixture(scope="module")
def vectors(encoder: PoolingEncoder) -> np.ndarray:
    """Real ones: 40 texts, 384 dimensions."""
    return encoder.encode(TEXTS)


def random(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


matrices = st.tuples(st.integers(1, 8), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1, 1, width=32))
)


@given(matrices)
@settings(deadline=None)
def test_inside_the_range_int8_is_off_by_half_a_step_at_most(values: np.ndarray) -> None:
    calibration = Calibration.fit(values)
    back = from_int8(to_int8(values, calibration), calibration)
    # float32 rounds value, low and product by up to 2**-24 each, relative to values of at most 1
    assert (np.abs(back - values) <= calibration.step / 2 + 1e-6).all()


@given(matrices, matrices)
@settings(deadline=None)
def test_outside_the_range_the_nearest_end_is_taken(seen: np.ndarray, values: np.ndarray) -> None:
    d = min(seen.shape[1], values.shape[1])
    seen, values = seen[:, :d], values[:, :d] * 5
    calibration = Calibration.fit(seen)
    codes = to_int8(values, calibration)
    top = calibration.low + 256 * calibration.step
    wide = calibration.step > 1e-5
    assert (codes[values < calibration.low] == -128).all()
    assert (codes[(values > top + 1e-5) & wide] == 127).all()
    inside = np.clip(values, calibration.low, top)
    off = np.abs(from_int8(codes, calibration) - inside)
    assert (off <= calibration.step / 2 + 1e-5)[:, wide].all()


@given(matrices)
@settings(deadline=None)
def test_int8_keeps_the_order_of_values(values: np.ndarray) -> None:
    codes = to_int8(values, Calibration.fit(values))
    for column, of_column in zip(values.T, codes.T, strict=True):
        assert (np.diff(of_column[np.argsort(column)].astype(int)) >= 0).all()


@given(matrices, st.integers(1, 5))
@settings(deadline=None)
def test_binary_similarity_counts_the_signs_that_differ(values: np.ndarray, rows: int) -> None:
    a, b = values, values[:rows] * np.float32(-1)
    d = values.shape[1]
    assert to_binary(a).shape == (len(a), (d + 7) // 8)
    differ = ((a > 0)[:, None] != (b > 0)[None]).sum(axis=2)
    found = similarity(to_binary(a), to_binary(b), dimension=d)
    assert np.allclose(found, 1 - 2 * differ / d, atol=1e-6)
    assert found.min() >= -1 and found.max() <= 1
    assert np.array_equal(from_binary(to_binary(a), d) > 0, a > 0)
    assert np.allclose(np.linalg.norm(from_binary(to_binary(a), d), axis=1), 1, atol=1e-6)


@given(matrices)
@settings(deadline=None)
def test_a_calibration_survives_json(values: np.ndarray) -> None:
    calibration = Calibration.fit(values)
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert np.array_equal(again.low, calibration.low)
    assert np.array_equal(again.step, calibration.step)


def test_a_dimension_that_never_varies_comes_back_exactly() -> None:
    values = np.array([[0.25, 0.5], [0.25, -0.5]], dtype=np.float32)
    calibration = Calibration.fit(values)
    assert calibration.step[0] == 0
    odd = np.array([[0.75, 0.0], [-1e30, 0.0]], dtype=np.float32)
    assert from_int8(to_int8(odd, calibration), calibration)[:, 0].tolist() == [0.25, 0.25]
    assert np.array_equal(from_int8(to_int8(values, calibration), calibration)[:, 0], values[:, 0])


def test_values_that_are_steps_away_beyond_float32_are_clipped() -> None:
    narrow = Calibration(low=np.zeros(1, np.float32), step=np.full(1, 1e-38, np.float32))
    far = np.array([[3e38], [-3e38]], dtype=np.float32)
    assert to_int8(far, narrow).tolist() == [[127], [-128]]


def test_a_quantile_clips_the_rarest_values() -> None:
    values = np.linspace(-1, 1, 1001, dtype=np.float32)[:, None]
    calibration = Calibration.fit(values, quantile=0.9)
    assert calibration.low[0] == pytest.approx(-0.9, abs=1e-3)
    assert calibration.low[0] + 255 * calibration.step[0] == pytest.approx(0.9, abs=1e-3)
    codes = to_int8(values, calibration)
    assert 40 <= (codes == 127).sum() <= 60
    assert 40 <= (codes == -128).sum() <= 60


def test_int8_agrees_with_float32_on_real_vectors(vectors: np.ndarray) -> None:
    calibration = Calibration.fit(vectors)
    codes = to_int8(vectors, calibration)
    exact = similarity(vectors, vectors)
    found = similarity(codes, codes, calibration=calibration)
    # Rounding errors are independent: half a step in each of 384 dimensions, times a unit vector.
    assert np.abs(found - exact).max() < 0.005
    assert shared_neighbours(exact, found, 10) >= 0.95


def test_binary_keeps_most_neighbours_of_real_vectors(vectors: np.ndarray) -> None:
    bits = to_binary(vectors)
    exact = similarity(vectors, vectors)
    found = similarity(bits, bits, dimension=384)
    assert found.dtype == np.float32
    assert shared_neighbours(exact, found, 10) >= 0.75


def shared_neighbours(exact: np.ndarray, found: np.ndarray, k: int) -> float:
    """Mean share of the k nearest others that are among the k nearest after quantization."""
    shares = []
    for n in range(len(exact)):
        ranked = [[m for m in np.argsort(-row) if m != n][:k] for row in (exact[n], found[n])]
        shares.append(len({*ranked[0]} & {*ranked[1]}) / k)
    return float(np.mean(shares))


@pytest.mark.parametrize("values", [1, 60, 4_000_000])
def test_the_size_of_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    a, b = random(7, 20), random(9, 20, seed=1)
    calibration = Calibration.fit(np.concatenate([a, b]))
    expected = from_int8(to_int8(a, calibration), calibration)
    other = from_int8(to_int8(b, calibration), calibration)
    signs = similarity(to_binary(a), to_binary(b), dimension=20)
    monkeypatch.setattr(quantization, "_CHUNK_VALUES", values)
    codes = to_int8(a, calibration), to_int8(b, calibration)
    assert np.allclose(similarity(*codes, calibration=calibration), expected @ other.T, atol=1e-6)
    assert np.array_equal(similarity(to_binary(a), to_binary(b), dimension=20), signs)


def test_no_float_copy_of_a_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    decode = quantization.from_int8

    def counted(codes: np.ndarray, calibration: Calibration) -> np.ndarray:
        sizes.append(codes.size)
        return decode(codes, calibration)

    monkeypatch.setattr(quantization, "from_int8", counted)
    monkeypatch.setattr(quantization, "_CHUNK_VALUES", 200)
    codes = np.zeros((100, 20), dtype=np.int8)
    calibration = Calibration.fit(random(5, 20))
    similarity(codes[:1], codes, calibration=calibration)
    assert max(sizes) == 200


def test_codes_are_those_of_the_reference(vectors: np.ndarray) -> None:
    """`quantize_embeddings` of sentence-transformers 6.2, "int8" with ranges and "ubinary"."""
    calibration = Calibration.fit(vectors)
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    expected = np.clip(np.floor((vectors - low) / ((high - low) / 255)), 0, 255) - 128
    assert np.array_equal(to_int8(vectors, calibration), expected.astype(np.int8))
    assert np.array_equal(to_binary(vectors), np.packbits(vectors > 0, axis=-1))


@pytest.mark.filterwarnings("default")
def test_codes_are_those_of_sentence_transformers(vectors: np.ndarray) -> None:
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="comes with the weights package"
    )
    constant = np.concatenate([vectors, vectors], axis=1)
    constant[:, 5] = 0.125
    for values in (vectors, constant):
        reference = sentence_transformers.quantize_embeddings
        codes = reference(values[:7], "int8", calibration_embeddings=values)
        assert np.array_equal(to_int8(values[:7], Calibration.fit(values)), codes)
        odd = values[:, :381]
        assert np.array_equal(to_binary(odd), reference(odd, "ubinary"))


def test_faiss_finds_the_same_in_packed_bits(vectors: np.ndarray) -> None:
    bits = to_binary(vectors)
    index = faiss.IndexBinaryFlat(384)
    index.add(bits)
    differ, found = index.search(bits[:5], 40)
    expected = similarity(bits[:5], bits, dimension=384)
    assert np.allclose(np.take_along_axis(expected, found, 1), 1 - 2 * differ / 384, atol=1e-6)


def test_nothing_in_gives_nothing_out() -> None:
    none = np.empty((0, 12), dtype=np.float32)
    calibration = Calibration.fit(random(3, 12))
    assert to_int8(none, calibration).shape == (0, 12)
    assert to_binary(none).shape == (0, 2)
    codes = to_int8(random(3, 12), calibration)
    assert similarity(codes[:0], codes, calibration=calibration).shape == (0, 3)
    assert similarity(to_binary(none), to_binary(none), dimension=12).shape == (0, 0)


def test_a_precision_by_name() -> None:
    values = random(4, 12)
    calibration = Calibration.fit(values)
    assert quantize(values, "float32") is values
    assert np.array_equal(
        quantize(values, "int8", calibration=calibration), to_int8(values, calibration)
    )
    assert np.array_equal(quantize(values, "binary"), to_binary(values))
    with pytest.raises(InvalidInput, match="give calibration="):
        quantize(values, "int8")
    with pytest.raises(InvalidInput, match="'int4' is not one of float32, int8, binary"):
        quantize(values, "int4")  # type: ignore[arg-type]


def test_other_dtypes_and_shapes_are_refused_with_numbers() -> None:
    values = random(4, 12)
    calibration = Calibration.fit(values)
    with pytest.raises(InvalidInput, match=r"float64 of shape \(4, 12\); float32"):
        to_int8(values.astype(np.float64), calibration)
    with pytest.raises(InvalidInput, match=r"shape \(12,\)"):
        to_binary(values[0])
    with pytest.raises(InvalidInput, match="11 dimensions and 12 are due"):
        to_int8(values[:, :11], calibration)
    with pytest.raises(InvalidInput, match="uint8.*int8"):
        from_int8(to_binary(values), calibration)
    with pytest.raises(InvalidInput, match="have 2 bytes and 384 dimensions need 48"):
        similarity(to_binary(values), to_binary(values), dimension=384)
    with pytest.raises(InvalidInput, match="dimension is 0"):
        from_binary(to_binary(values), 0)
    with pytest.raises(InvalidInput, match="float32 and uint8 vectors cannot be compared"):
        similarity(values, to_binary(values))
    with pytest.raises(InvalidInput, match="say dimension="):
        similarity(to_binary(values), to_binary(values))
    with pytest.raises(InvalidInput, match="give calibration="):
        similarity(to_int8(values, calibration), to_int8(values, calibration))
    with pytest.raises(InvalidInput, match="11 dimensions and 12 are due"):
        similarity(values, values[:, :11])
    with pytest.raises(InvalidInput, match="11 dimensions and 12 are due"):
        codes = to_int8(values, calibration)
        similarity(codes, codes[:0, :11], calibration=calibration)
    with pytest.raises(InvalidInput, match="int64"):
        similarity(values.astype(np.int64), values.astype(np.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_number(
    monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    monkeypatch.setattr(quantization, "_CHUNK_VALUES", 24)  # two rows
    values = random(4, 12)
    calibration = Calibration.fit(values)
    values[2, 3] = bad
    for refused in (
        lambda: to_int8(values, calibration),
        lambda: to_binary(values),
        lambda: Calibration.fit(values),
    ):
        with pytest.raises(InvalidInput, match="vector 3 of 4 is not finite"):
            refused()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": [0.0]}, "this one has low"),
        ({"low": [0.0], "step": [1.0], "high": [1.0]}, "high, low, step"),
        ({"low": [0.0], "step": ["wide"]}, "not numbers"),
        ({"low": [0.0], "step": [1.0, 1.0]}, "1 lows and 2 steps"),
        ({"low": [], "step": []}, "0 lows and 0 steps"),
        ({"low": [0.0, 0.0], "step": [1.0, -1.0]}, "dimension 2 .* steps of -1"),
        ({"low": [float("nan")], "step": [1.0]}, "dimension 1 .* begins at nan"),
        ({"low": [[0.0]], "step": [1.0]}, r"low is float32 of shape \(1, 1\)"),
    ],
)
def test_what_is_no_calibration(values: dict[str, list[float]], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Calibration.from_json(values)


def test_what_cannot_be_calibrated_on() -> None:
    with pytest.raises(InvalidInput, match="no vectors"):
        Calibration.fit(np.empty((0, 4), dtype=np.float32))
    for quantile in (0.5, 1.01, float("nan")):
        with pytest.raises(InvalidInput, match="quantile is"):
            Calibration.fit(random(4, 4), quantile=quantile)
