"""Vectors in a quarter (int8) or a 32nd (binary) of their bytes, with the matching similarity.

int8 is scalar quantization: per dimension, 256 steps of equal width over the range that calibration
vectors had. Binary keeps the sign of each dimension, eight to a byte, the first in the highest bit.
Codes are those of sentence-transformers' `quantize_embeddings` ("int8" and "ubinary"), and packed
bits are what FAISS' binary indexes take.

>>> vectors = np.array([[0.6, -0.8, 0.0], [0.0, 0.6, 0.8]], dtype=np.float32)
>>> calibration = Calibration.fit(vectors)
>>> codes = to_int8(vectors, calibration)
>>> codes.tolist()
[[127, -128, -128], [-128, 127, 127]]
>>> similarity(codes, codes, calibration=calibration).round(1).tolist()
[[1.0, -0.5], [-0.5, 1.0]]
>>> to_binary(vectors).tolist()
[[128], [96]]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import InvalidInput

Precision = Literal["float32", "int8", "binary"]
Codes = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]

_LEVELS = 256
_CHUNK_VALUES = 4_000_000  # float32 values that are in memory at the same time: 16 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """The range of each dimension, cut into 256 steps; every vector of an index needs the same one.

    Attributes:
        low: (d,) float32, where the first step begins.
        step: (d,) float32, width of a step; 0 where all calibration vectors agreed.
    """

    low: NDArray[np.float32]
    step: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, values in (("low", self.low), ("step", self.step)):
            if values.dtype != np.float32 or values.ndim != 1:
                raise InvalidInput(
                    f"a calibration's {name} is {values.dtype} of shape {values.shape}; float32 of "
                    "shape (d,) is due"
                )
        if len(self.low) != len(self.step) or not len(self.low):
            raise InvalidInput(
                f"a calibration has {len(self.low)} lows and {len(self.step)} steps; it needs one "
                "of each per dimension"
            )
        bad = np.flatnonzero(~(np.isfinite(self.low) & np.isfinite(self.step) & (self.step >= 0)))
        if len(bad):
            n = int(bad[0])
            raise InvalidInput(
                f"dimension {n + 1} of a calibration begins at {self.low[n]:g} in steps of "
                f"{self.step[n]:g}; both have to be finite, and the step at least 0"
            )

    @property
    def dimension(self) -> int:
        """d, the length of each vector."""
        return len(self.low)

    @classmethod
    def fit(cls, vectors: NDArray[np.float32], *, quantile: float = 1.0) -> Calibration:
        """Take the ranges from vectors like those to be quantized.

        Args:
            vectors: float32, shape (n, d); a few thousand are plenty, 100 the least that is sound.
            quantile: the middle share of each dimension's values that the range covers, above 0.5
                and at most 1. Below 1, steps get narrower and the rarest values are clipped.

        Raises:
            InvalidInput: no vectors, another dtype or shape, a value that is not finite, or a
                quantile out of its bounds.
        """
        if not 0.5 < quantile <= 1.0:
            raise InvalidInput(f"quantile is {quantile}; it must be above 0.5 and at most 1")
        _check_float(vectors)
        if not len(vectors):
            raise InvalidInput("there are no vectors to calibrate on; give some hundred")
        cut = (1.0 - quantile) / 2
        if cut:
            low, high = np.quantile(vectors, [cut, 1.0 - cut], axis=0).astype(np.float32)
        else:
            low, high = vectors.min(axis=0), vectors.max(axis=0)
        return cls(low=low, step=(high - low) / np.float32(_LEVELS - 1))

    def to_json(self) -> dict[str, list[float]]:
        """The values as plain JSON types; float32 survives the way there and back exactly."""
        return {"low": self.low.tolist(), "step": self.step.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Rebuild from `to_json`.

        Raises:
            InvalidInput: other keys, or values that are no calibration.
        """
        if set(values) != {"low", "step"}:
            raise InvalidInput(
                f"a calibration has low and step; this one has {', '.join(sorted(values)) or 'none'}"
            )
        try:
            low, step = (np.array(values[name], dtype=np.float32) for name in ("low", "step"))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"a calibration's values are not numbers ({error})") from None
        return cls(low=low, step=step)


def quantize(
    vectors: NDArray[np.float32], precision: Precision, *, calibration: Calibration | None = None
) -> Codes:
    """Vectors in a precision chosen at run time: see `to_int8` and `to_binary`.

    Args:
        vectors: float32, shape (n, d).
        precision: "float32" gives them back as they are.
        calibration: needed for "int8".

    Raises:
        InvalidInput: an unknown precision, int8 without a calibration, or vectors of another kind.
    """
    if precision == "float32":
        _check_float(vectors)
        return vectors
    if precision == "int8":
        return to_int8(vectors, _required(calibration))
    if precision == "binary":
        return to_binary(vectors)
    raise InvalidInput(f"precision {precision!r} is not one of float32, int8, binary")


def to_int8(vectors: NDArray[np.float32], calibration: Calibration) -> NDArray[np.int8]:
    """Which step each value falls on: int8, shape (n, d), -128 the lowest step.

    Values outside the calibrated range get its first or last step.

    Args:
        vectors: float32, shape (n, d).
        calibration: ranges of the d dimensions.

    Raises:
        InvalidInput: another dtype, shape or dimension, or a value that is not finite.
    """
    _check_float(vectors, calibration.dimension)
    step = np.where(calibration.step == 0, np.float32(1), calibration.step)
    codes = np.empty(vectors.shape, dtype=np.int8)
    with np.errstate(over="ignore"):  # far outside a narrow range: infinite steps, clipped below
        for part in _parts(len(vectors), vectors.shape[1]):
            levels = np.floor((vectors[part] - calibration.low) / step)
            codes[part] = np.clip(levels, 0, _LEVELS - 1) - _LEVELS // 2
    return codes


def from_int8(codes: NDArray[np.int8], calibration: Calibration) -> NDArray[np.float32]:
    """The middle of each step: float32, shape (n, d).

    Inside the calibrated range a value is off by half a step at most; a dimension of step 0 comes
    back as it was calibrated.

    Args:
        codes: int8, shape (n, d), made with the same calibration.
        calibration: ranges of the d dimensions.

    Raises:
        InvalidInput: another dtype, shape or dimension.
    """
    _check(codes, np.int8, calibration.dimension)
    levels = codes.astype(np.float32) + np.float32(_LEVELS // 2 + 0.5)
    return levels * calibration.step + calibration.low


def to_binary(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One bit a dimension, set where the value is above 0: uint8, shape (n, ceil(d / 8)).

    The first dimension is the highest bit of the first byte; unused bits at the end are 0.

    Args:
        vectors: float32, shape (n, d).

    Raises:
        InvalidInput: another dtype or shape, or a value that is not finite.
    """
    _check_float(vectors)
    return np.packbits(vectors > 0, axis=1)


def from_binary(codes: NDArray[np.uint8], dimension: int) -> NDArray[np.float32]:
    """Unit vectors of the signs: float32, shape (n, d), each value 1 or -1 over the root of d.

    Args:
        codes: uint8, shape (n, ceil(d / 8)).
        dimension: d.

    Raises:
        InvalidInput: another dtype or shape.
    """
    return _signs(codes, dimension) / np.float32(np.sqrt(dimension))


def similarity(
    a: Codes, b: Codes, *, calibration: Calibration | None = None, dimension: int | None = None
) -> NDArray[np.float32]:
    """Every vector of `a` against every one of `b`: float32, shape (n, m).

    - float32: the dot product, which is the cosine of unit vectors;
    - int8: the dot product of the vectors that the codes stand for; rounding may carry it a little
      beyond 1 or -1;
    - binary (uint8): 1 - 2 * (bits that differ) / d, in [-1, 1].

    Codes are decoded a part at a time, so that no float copy of a whole matrix is made.

    Args:
        a: shape (n, d), or (n, ceil(d / 8)) packed bits.
        b: m of the same kind.
        calibration: of int8 codes.
        dimension: d, of packed bits; their bytes do not tell it.

    Raises:
        InvalidInput: dtypes or dimensions that differ or do not fit, or a missing argument.
    """
    if a.dtype != b.dtype:
        raise InvalidInput(
            f"{a.dtype} and {b.dtype} vectors cannot be compared; quantize both in the same way"
        )
    if a.dtype == np.float32:
        _check(a, np.float32)
        _check(b, np.float32, a.shape[1])
        return np.asarray(a @ b.T, dtype=np.float32)
    if a.dtype == np.int8:
        ranges = _required(calibration)
        return _dot(a, b, ranges.dimension, lambda codes: from_int8(codes, ranges))
    if a.dtype == np.uint8:
        if dimension is None:
            raise InvalidInput(
                "packed bits do not tell how many dimensions they have: say dimension="
            )
        # The dot product of signs is d - 2 * (signs that differ), exact in float32.
        signs = _dot(a, b, dimension, lambda codes: _signs(codes, dimension))
        return signs / np.float32(dimension)
    raise InvalidInput(f"vectors are {a.dtype}; float32, int8 or uint8 (packed bits) is due")


def _dot(
    a: NDArray[Any],
    b: NDArray[Any],
    dimension: int,
    decode: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    decode(a[:0]), decode(b[:0])  # refuses a wrong shape even where there are no rows
    products = np.empty((len(a), len(b)), dtype=np.float32)
    for rows in _parts(len(a), dimension):
        left = decode(a[rows])
        for columns in _parts(len(b), dimension):
            products[rows, columns] = left @ decode(b[columns]).T
    return products


def _signs(codes: NDArray[np.uint8], dimension: int) -> NDArray[np.float32]:
    """1 where a bit is set and -1 where it is not: (n, d) float32."""
    if dimension < 1:
        raise InvalidInput(f"dimension is {dimension}; it must be at least 1")
    _check(codes, np.uint8)
    if codes.shape[1] != (width := -(-dimension // 8)):
        raise InvalidInput(
            f"packed vectors have {codes.shape[1]} bytes and {dimension} dimensions need {width}; "
            "give the dimension of the vectors before they were packed"
        )
    bits = np.unpackbits(codes, axis=1, count=dimension)
    return bits.astype(np.float32) * np.float32(2) - np.float32(1)


def _parts(rows: int, width: int) -> Iterator[slice]:
    """Runs of rows that together hold about `_CHUNK_VALUES` values."""
    size = max(1, _CHUNK_VALUES // max(1, width))
    return (slice(start, start + size) for start in range(0, rows, size))


def _required(calibration: Calibration | None) -> Calibration:
    if calibration is None:
        raise InvalidInput("int8 needs the ranges of the dimensions: give calibration=")
    return calibration


def _check(vectors: NDArray[Any], dtype: type[np.generic], dimension: int | None = None) -> None:
    if vectors.dtype != dtype or vectors.ndim != 2:
        raise InvalidInput(
            f"vectors are {vectors.dtype} of shape {vectors.shape}; {np.dtype(dtype)} of shape "
            "(n, d) is due"
        )
    if dimension is not None and vectors.shape[1] != dimension:
        raise InvalidInput(
            f"vectors have {vectors.shape[1]} dimensions and {dimension} are due; they come from "
            "another model or calibration"
        )


def _check_float(vectors: NDArray[np.float32], dimension: int | None = None) -> None:
    _check(vectors, np.float32, dimension)
    for part in _parts(*vectors.shape):
        finite = np.isfinite(vectors[part]).all(axis=1)
        if not finite.all():
            number = part.start + int(np.flatnonzero(~finite)[0]) + 1
            raise InvalidInput(
                f"vector {number} of {len(vectors)} is not finite and cannot be quantized"
            )
