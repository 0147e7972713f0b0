"""Configuration: one frozen, keyword-only dataclass per component, saved as JSON beside its work.

An unknown key is an error: a misspelt option that is silently ignored costs more than a message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from ragembed.errors import InvalidInput

C = TypeVar("C", bound="Config")

DType = Literal["auto", "float32", "bfloat16", "float16"]
DEFAULT_MODEL = "all-MiniLM-L6-v2"

VectorPrecision = Literal["float16", "float32"]
ContextFormat = Literal["markdown", "xml", "json", "messages"]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"]
Position = Literal["none", "learned", "sinusoidal"]
Relative = Literal["none", "rotary", "buckets", "relative_key"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the configurations: JSON both ways, and a fingerprint of the values."""

    def to_json(self) -> dict[str, Any]:
        """The values as plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls: type[C], values: Mapping[str, Any]) -> C:
        """Rebuild from `to_json`; raises `InvalidInput` on an unknown key."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InvalidInput(
                f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the values: equal exactly when all settings are equal."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidInput(message)


@dataclass(frozen=True, kw_only=True)
class ScanConfig(Config):
    """Which files of a root are read.

    Attributes:
        include: globs in gitignore syntax; when given, only matching files are read.
        exclude: globs in gitignore syntax that are left out.
        hidden: read files and folders whose name starts with a dot.
        max_file_size: bytes; larger files are skipped as `too_big`.
        encoding: decode every text file with this encoding instead of finding it out.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hidden: bool = False
    max_file_size: int = 50_000_000
    encoding: str | None = None

    def __post_init__(self) -> None:
        _require(
            self.max_file_size > 0, f"max_file_size is {self.max_file_size}; it must be above 0"
        )
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, UnicodeError):
                raise InvalidInput(
                    f"there is no text encoding {self.encoding!r}; use a name such as latin-1 or gbk"
                ) from None


@dataclass(frozen=True, kw_only=True)
class ChunkingConfig(Config):
    """How a document is cut; all lengths in the encoder's tokens, specials not counted.

    Attributes:
        passage: most tokens of a passage (the unit of lexical search and context).
        window: most tokens of a window (the unit of encoding).
        overlap: tokens that neighbouring windows share; windows start every `window - overlap`.
        characters_per_token: a window holds at most `window * characters_per_token` characters,
            because WordPiece turns long unknown strings into a single token.
    """

    passage: int = 384
    window: int = 128
    overlap: int = 32
    characters_per_token: int = 10

    def __post_init__(self) -> None:
        _require(self.window >= 8, f"window is {self.window} tokens; it must be at least 8")
        _require(
            0 <= self.overlap <= self.window // 2,
            f"overlap is {self.overlap} tokens; it must lie between 0 and half the window "
            f"({self.window // 2})",
        )
        _require(
            self.passage >= self.window,
            f"passage is {self.passage} tokens; it must be at least the window ({self.window})",
        )
        _require(
            self.characters_per_token >= 2,
            f"characters_per_token is {self.characters_per_token}; it must be at least 2",
        )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Config):
    """How the encoder is run; none of it changes what a vector means.

    Attributes:
        device: "auto" (CUDA where there is one, else CPU), or a torch device name; several with
            commas between get a worker process each.
        dtype: "auto" is bfloat16 where the processor has instructions for it, else float32.
        batch_tokens: most tokens in one batch; 0 picks a figure for the device.
    """

    device: str = "auto"
    dtype: DType = "auto"
    batch_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """How vectors are stored and searched; chosen when the first document comes.

    Attributes:
        precision: of the stored vectors. float16 halves the size and costs no measured quality.
        faiss: a FAISS factory string ("HNSW32,SQ8"); empty chooses by the number of vectors.
    """

    precision: VectorPrecision = "float16"
    faiss: str = ""

    def __post_init__(self) -> None:
        _require(
            self.precision in get_args(VectorPrecision),
            f"precision {self.precision!r} is not one of {', '.join(get_args(VectorPrecision))}",
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Config):
    """How the two legs are read and fused.

    Attributes:
        candidates: best passages taken from each leg before fusion.
        dense_weight: share w of the dense leg in `w * cosine + (1 - w) * bm25 / max bm25`.
    """

    candidates: int = 200
    dense_weight: float = 0.7

    def __post_init__(self) -> None:
        _require(
            1 <= self.candidates <= 10_000,
            f"candidates is {self.candidates}; it must lie between 1 and 10,000",
        )
        _require(
            0.0 <= self.dense_weight <= 1.0,
            f"dense_weight is {self.dense_weight}; it must lie between 0 and 1",
        )


@dataclass(frozen=True, kw_only=True)
class ContextConfig(Config):
    """How a context is packed.

    Attributes:
        max_tokens: bound on the whole rendered text, in `tokenizer`'s tokens.
        tokenizer: name of a budget tokenizer (see `ragembed.tokenizer.budget_tokenizer`).
        format: how the text is rendered.
    """

    max_tokens: int = 2000
    tokenizer: str = "ragembed-32k"
    format: ContextFormat = "markdown"

    def __post_init__(self) -> None:
        _require(
            self.format in get_args(ContextFormat),
            f"format {self.format!r} is not one of {', '.join(get_args(ContextFormat))}",
        )
        _require(
            0 <= self.max_tokens <= 10_000_000,
            f"max_tokens is {self.max_tokens}; it must lie between 0 and 10,000,000",
        )


@dataclass(frozen=True, kw_only=True)
class DenseConfig(Config):
    """A linear map of the pooled vector, with an activation; several may follow each other.

    Attributes:
        inputs: length of the vector that comes in.
        outputs: length of the vector that goes out.
        bias: whether a bias is added.
        activation: applied to the result.
    """

    inputs: int
    outputs: int
    bias: bool = True
    activation: Activation = "tanh"


_SIZES = (
    "vocabulary_size",
    "hidden_size",
    "layers",
    "heads",
    "intermediate_size",
    "positions",
    "max_length",
)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """Shape of the encoder: front end, transformer and pooling head.

    Attributes:
        vocabulary_size: rows of the token embedding table.
        hidden_size: D, the width of every token vector.
        layers: transformer blocks; 0 makes a static encoder: token table and pooling.
        heads: H, attention heads; `hidden_size` is a multiple of it.
        intermediate_size: width inside each block's MLP.
        positions: longest input the weights allow; rows of the learned position table, if any.
        max_length: longest input that is encoded, specials included (at most `positions`).
        position: what is added to a token's vector for its place (see `encoder.positions`).
        relative: how attention is told the distance of two tokens.
        causal: whether a token sees only itself and those before it (GPT).
        norm_first: LayerNorm before attention and MLP (GPT-2) rather than behind them (BERT).
        front_norm: LayerNorm behind the front end (BERT).
        final_norm: LayerNorm behind the last block (GPT-2).
        activation: inside each block's MLP.
        layer_norm_eps: the constant inside each LayerNorm.
        pad_id: token id that fills up shorter texts; masked, so it changes no vector.
        specials: whether the tokenizer's special tokens are put around a text.
        drop_unknown: leave out tokens the vocabulary lacks (model2vec).
        pooling: how token vectors become one vector; several are concatenated.
        include_prompt: whether the tokens of a prompt take part in pooling.
        dense: linear maps behind the pooling.
        normalize: whether the vector is scaled to unit length.
        truncate_dim: keep so many leading dimensions (Matryoshka); 0 keeps all.
    """

    vocabulary_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    positions: int
    max_length: int
    position: Position = "learned"
    relative: Relative = "none"
    causal: bool = False
    norm_first: bool = False
    front_norm: bool = True
    final_norm: bool = False
    activation: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    pad_id: int = 0
    specials: bool = True
    drop_unknown: bool = False
    pooling: tuple[Pooling, ...] = ("mean",)
    include_prompt: bool = True
    dense: tuple[DenseConfig, ...] = ()
    normalize: bool = True
    truncate_dim: int = 0

    def __post_init__(self) -> None:
        for field in _SIZES:
            size = getattr(self, field)
            least = 0 if field == "layers" else 1
            _require(
                isinstance(size, int) and least <= size < 2**31,
                f"{field} is {size}; it must be a whole number of at least {least}",
            )
        _require(
            0 <= self.pad_id < self.vocabulary_size,
            f"pad_id is {self.pad_id}; the vocabulary has {self.vocabulary_size} entries",
        )
        _require(
            self.hidden_size % self.heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}",
        )
        _require(
            2 < self.max_length <= self.positions,
            f"max_length {self.max_length} must lie above 2 and within the {self.positions} "
            "positions of the weights",
        )
        wrong = [mode for mode in self.pooling if mode not in get_args(Pooling)]
        _require(
            bool(self.pooling) and not wrong,
            f"pooling {' + '.join(wrong) or 'without a mode'} is not supported; "
            f"one or more of {', '.join(get_args(Pooling))} is",
        )
        for field, modes in (("position", Position), ("relative", Relative)):
            _require(
                getattr(self, field) in get_args(modes),
                f"{field} {getattr(self, field)!r} is not one of {', '.join(get_args(modes))}",
            )
        width = self.pooled_size
        for dense in self.dense:
            _require(
                dense.inputs == width,
                f"a dense layer takes {dense.inputs} values and gets {width}",
            )
            width = dense.outputs
        _require(
            0 <= self.truncate_dim <= width,
            f"truncate_dim is {self.truncate_dim}; the vectors have {width} dimensions",
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """Rebuild from `to_json`; raises `InvalidInput` on an unknown key."""
        dense = [DenseConfig.from_json(layer) for layer in values.get("dense", ())]
        return super().from_json({**values, "dense": dense})

    @property
    def pooled_size(self) -> int:
        """Length of the vector behind the pooling: D for each mode."""
        return self.hidden_size * len(self.pooling)

    @property
    def dimension(self) -> int:
        """d, the length of the vector that comes out."""
        whole = self.dense[-1].outputs if self.dense else self.pooled_size
        return self.truncate_dim or whole
