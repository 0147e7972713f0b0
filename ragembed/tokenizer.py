"""Tokenizers behind one Protocol: ids, exact offsets, unknown flags, and counts for budgets.

Two jobs that are never mixed: the encoder's own tokenizer (`HuggingFaceTokenizer`) says what a
model reads; a budget tokenizer (`budget_tokenizer`) says what a context costs a language model.
Special tokens written in a text handed to a budget tokenizer are ordinary text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import Encoding as HuggingFaceEncoding
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers

from ragembed import byte_pair
from ragembed.byte_pair import PATTERN, parse_ranks, split_at, with_specials
from ragembed.errors import InvalidInput, ModelError
from ragembed.pieces import pieces, well_formed
from ragembed.tiktoken_cache import ensure_cached, tiktoken_files

BATCH = 1_000_000  # characters of pieces that are in memory as encodings at the same time
DEFAULT_BUDGET = "ragembed-32k"
RANKS_SHA256 = "ea15f473b0fc9a469224efa6ee3ce7e5c68c0dbd55f61a62c5d8632815dc19c0"


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of one text, special tokens not included.

    Attributes:
        ids: (n,) int32.
        offsets: (n, 2) int32, [start, end) in code points of the text. Tokens that share a
            character (its bytes are split between them) all have that character's span.
        unknown: (n,) bool, tokens the vocabulary lacks ([UNK]).
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    unknown: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(Protocol):
    """What chunking and context building need of a tokenizer; instances never change."""

    @property
    def name(self) -> str:
        """How reports call it."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of what defines it."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """One `Tokens` per text, in order; raises `ModelError` if the encoder breaks down."""

    def count(self, text: str) -> int:
        """`len` of the text's tokens, without the cost of their offsets."""


@contextmanager
def _no_panic(name: str) -> Iterator[None]:
    """Turn a panic of Rust code, which is no `Exception`, into a `ModelError`."""
    try:
        yield
    except BaseException as error:
        # The library raises bare exceptions, such as for an unknown token it has no entry for.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer {name!r} broke down on a text ({error}); choose another tokenizer"
        ) from None


def _join(parts: Sequence[tuple[int, Tokens]]) -> Tokens:
    """The tokens of a text from those of its pieces."""
    if len(parts) == 1:
        return parts[0][1]
    return Tokens(
        np.concatenate([tokens.ids for _, tokens in parts]),
        np.concatenate([tokens.offsets + np.int32(start) for start, tokens in parts]),
        np.concatenate([tokens.unknown for _, tokens in parts]),
    )


def _batches(texts: Sequence[str]) -> Iterator[list[tuple[int, int, str]]]:
    """All pieces as (number of the text, offset, piece), about `BATCH` characters at a time."""
    batch: list[tuple[int, int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for start, piece in pieces(well_formed(text)):
            batch.append((number, start, piece))
            size += len(piece)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    yield batch


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library, truncation and padding off.

    Attributes:
        name: how reports call it.
        data: the file.
        lower_case: whether texts are put into lower case first.
        fingerprint: hexadecimal SHA-256 of the file, and of `lower_case` if that is set.
        unknown_id: id of the token that stands for what the vocabulary lacks, if there is one.
        special_tokens: how many special tokens a single text gets (2 for BERT).
    """

    def __init__(
        self,
        data: bytes,
        name: str,
        *,
        specials_as_text: bool = False,
        lower_case: bool = False,
    ) -> None:
        """Parse the bytes of a `tokenizer.json`; raises `ModelError` if they are not one.

        `specials_as_text` reads "[SEP]" in a text as five characters; models read it as special.
        `lower_case` puts texts into lower case first, as some checkpoints ask for beside the file.
        """
        try:
            self._rust = RustTokenizer.from_str(data.decode())
            model = json.loads(data)["model"]
        except Exception as error:
            raise ModelError(f"{name} is not a usable tokenizer.json ({error})") from error
        self._rust.no_truncation()
        self._rust.no_padding()
        self._rust.encode_special_tokens = specials_as_text
        if lower_case:
            own = self._rust.normalizer
            lower = normalizers.Lowercase()
            self._rust.normalizer = normalizers.Sequence([lower, own] if own else [lower])
        unknown: int | None = model.get("unk_id")
        if unknown is None and model.get("unk_token") is not None:
            unknown = self._rust.token_to_id(model["unk_token"])
        self.name: Final = name
        self.data: Final = data
        self.unknown_id: Final = unknown
        self.lower_case: Final = lower_case
        defined = data + b"\0lower case" if lower_case else data
        self.fingerprint: Final = hashlib.sha256(defined).hexdigest()
        self.special_tokens: Final = int(self._rust.num_special_tokens_to_add(False))

    @classmethod
    def from_file(
        cls, path: Path, name: str | None = None, *, specials_as_text: bool = False
    ) -> HuggingFaceTokenizer:
        """Read a `tokenizer.json`; raises `ModelError` if it cannot be read or is not one."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"the tokenizer {path} cannot be read ({error.strerror})") from error
        return cls(data, name or str(path), specials_as_text=specials_as_text)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """One `Tokens` per text, in order; raises `ModelError` if the encoder breaks down."""
        found: list[list[tuple[int, Tokens]]] = [[] for _ in texts]
        for batch in _batches(texts):
            with _no_panic(self.name):
                encodings = self._rust.encode_batch(
                    [piece for _, _, piece in batch], add_special_tokens=False
                )
            for (number, start, _), encoding in zip(batch, encodings, strict=True):
                found[number].append((start, self._tokens(encoding)))
        return [_join(parts) for parts in found]

    def _tokens(self, encoding: HuggingFaceEncoding) -> Tokens:
        ids = np.array(encoding.ids, np.int32)
        flat = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(ids))
        unknown = (
            np.zeros(len(ids), np.bool_) if self.unknown_id is None else ids == self.unknown_id
        )
        return Tokens(ids, flat.reshape(-1, 2), unknown)

    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens in front of a text, and those behind it.

        Raises:
            ModelError: no text has a token of its own.
        """
        for probe in chain(("a", "1"), self._rust.get_vocab()):
            encoding = self._rust.encode(probe)
            own = [n for n, part in enumerate(encoding.sequence_ids) if part is not None]
            if own:
                return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]
        raise ModelError(f"the tokenizer {self.name!r} makes nothing of any text")

    def count(self, text: str) -> int:
        """How many tokens the text has, special tokens not included."""
        with _no_panic(self.name):
            return sum(
                len(self._rust.encode_batch_fast([piece], add_special_tokens=False)[0])
                for _, piece in pieces(well_formed(text))
            )

    def model_inputs(self, texts: Sequence[str], *, specials: bool = True) -> list[list[int]]:
        """The ids the model reads, special tokens included unless left out; nothing is cut off."""
        with _no_panic(self.name):
            encodings = self._rust.encode_batch_fast(
                list(map(well_formed, texts)), add_special_tokens=specials
            )
            return [encoding.ids for encoding in encodings]


class TiktokenTokenizer:
    """A byte-level BPE of the `tiktoken` library: every text has tokens, none is unknown.

    `encode` and `count` read a special token written in a text (`<|endoftext|>`) as the characters
    it is: a document that mentions one stays a document. `encode_with_specials` reads it as the
    special token; that is for training data, whose special tokens the program put there itself.

    Attributes:
        name: how reports call it.
        special_ids: the id of each special token.
        vocabulary_size: rows that a token table needs, special tokens included.
    """

    def __init__(self, encoding: tiktoken.Encoding, *, added: Sequence[str] = ()) -> None:
        """`added` are the special tokens that `extended` put behind the encoding's own."""
        self._encoding = encoding
        self._added = tuple(added)
        self.name: Final = encoding.name
        self.special_ids: Final[Mapping[str, int]] = dict(encoding._special_tokens)
        self.vocabulary_size: Final = encoding.n_vocab

    def extended(self, *specials: str) -> TiktokenTokenizer:
        """The same tokenizer with more special tokens, their ids behind the last one.

        Raises `InvalidInput` if one is empty, no valid Unicode, or a token already.

        >>> more = budget_tokenizer().extended("<|endoftext|>", "<|unk|>")
        >>> more.vocabulary_size, more.special_ids["<|unk|>"]
        (32770, 32769)
        """
        return TiktokenTokenizer(
            with_specials(self._encoding, specials), added=(*self._added, *specials)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the pre-split pattern, the ranks and the added special tokens."""
        return byte_pair.fingerprint(self._encoding, self._added)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """One `Tokens` per text, in order; raises `ModelError` if the encoder breaks down."""
        return [
            _join([(start, self._encode(part)) for start, part in pieces(well_formed(text))])
            for text in texts
        ]

    def _encode(self, text: str) -> Tokens:
        with _no_panic(self.name):
            ids = np.array(self._encoding.encode_ordinary(text), dtype=np.int32)
        kinds, kind = np.unique(ids, return_inverse=True)
        lengths = [len(self._encoding.decode_single_token_bytes(int(token))) for token in kinds]
        ends = np.cumsum(np.array(lengths, dtype=np.int64)[kind.reshape(-1)])
        starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        if (given := ends[-1] if len(ends) else 0) != len(data):
            raise ModelError(
                f"the tokenizer {self.name!r} gave {given} of a text's {len(data)} bytes; choose "
                f"another tokenizer"
            )
        # Which character a byte belongs to: UTF-8 continuation bytes are 10xxxxxx.
        character = np.cumsum((data & 0xC0) != 0x80, dtype=np.int32) - 1
        offsets = np.stack([character[starts], character[ends - 1] + 1], axis=1)
        return Tokens(ids, offsets.astype(np.int32, copy=False), np.zeros(len(ids), np.bool_))

    def count(self, text: str) -> int:
        """How many tokens the text has; `<|endoftext|>` and its like are ordinary text."""
        with _no_panic(self.name):
            return sum(
                len(self._encoding.encode_ordinary(piece)) for _, piece in pieces(well_formed(text))
            )

    def encode_with_specials(self, text: str) -> list[int]:
        """Token ids of a text whose special tokens are meant; all else is as in `encode`.

        >>> budget_tokenizer().extended("<|end|>").encode_with_specials("one<|end|>")
        [722, 32768]
        """
        ids: list[int] = []
        for part, special in split_at(text, self.special_ids):
            if special:
                ids.append(self.special_ids[part])
                continue
            with _no_panic(self.name):
                for _, piece in pieces(well_formed(part)):
                    ids += self._encoding.encode_ordinary(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special ones included; bytes that are no UTF-8 become U+FFFD.

        Raises `InvalidInput` if an id is not in the vocabulary.

        >>> budget_tokenizer().decode(budget_tokenizer().encode(["Don't stop."])[0].ids)
        "Don't stop."
        """
        listed = [int(id_) for id_ in ids]
        try:
            return self._encoding.decode(listed)
        except (KeyError, OverflowError):
            known = {*self._encoding._mergeable_ranks.values(), *self.special_ids.values()}
            wrong = next(id_ for id_ in listed if id_ not in known)
            raise InvalidInput(
                f"{self.name!r} has no token {wrong}; its ids go from 0 to {max(known)}"
            ) from None


def budget_tokenizer(name: str = DEFAULT_BUDGET) -> Tokenizer:
    """The tokenizer that counts a context's budget.

    `name` is "ragembed-32k" (ships with the package), the path of a `tokenizer.json`, or an
    encoding or model tiktoken knows ("gpt2", "cl100k_base", "gpt-4o"). Only the last kind is
    ever fetched, and only when tiktoken's cache lacks it.

    Raises `InvalidInput` if there is no such tokenizer or it cannot be fetched, `ModelError` if
    its file is damaged, `StorageError` if the cache cannot be written.

    >>> budget_tokenizer().count("How are documents chunked?")
    6
    """
    if name == DEFAULT_BUDGET:
        return _own_tokenizer()
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise InvalidInput(f"there is no tokenizer file {name}; give the path of a file")
        return HuggingFaceTokenizer.from_file(path, name, specials_as_text=True)
    known = tiktoken.list_encoding_names()
    try:
        encoding = name if name in known else tiktoken.encoding_name_for_model(name)
    except KeyError:
        raise InvalidInput(
            f"there is no tokenizer {name!r}; use {DEFAULT_BUDGET}, the path of a "
            f"tokenizer.json, or a tiktoken encoding ({', '.join(sorted(known))})"
        ) from None
    for url, cached in tiktoken_files(encoding).items():
        ensure_cached(encoding, url, cached)
    return TiktokenTokenizer(tiktoken.get_encoding(encoding))


@cache
def _own_tokenizer() -> TiktokenTokenizer:
    data = Path(__file__).with_name(f"{DEFAULT_BUDGET}.tiktoken").read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != RANKS_SHA256:
        raise ModelError(
            f"{DEFAULT_BUDGET}.tiktoken is damaged (SHA-256 {found[:12]}, expected "
            f"{RANKS_SHA256[:12]}); install ragembed again"
        )
    encoding = tiktoken.Encoding(
        DEFAULT_BUDGET, pat_str=PATTERN, mergeable_ranks=parse_ranks(data), special_tokens={}
    )
    return TiktokenTokenizer(encoding)
