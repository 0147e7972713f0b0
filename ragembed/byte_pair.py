"""Byte-level BPEs in tiktoken's terms: our pre-split pattern, files of ranks, more special tokens."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import tiktoken

from ragembed.errors import InvalidInput, ModelError

# One alternative per kind of text, each a single greedy run: no look-ahead and no nested
# repetition, so it runs in linear time whatever the input. Letters other than Han may take one
# leading blank or mark (" word", ".append", "(self") and an English contraction.
PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}&&[^\p{Han}]]+(?:['’](?:[sdmt]|ll|re|ve))?",
        r" ?\p{Han}+",
        r" ?\p{N}{1,3}",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        r"\s+",
    )
)


def parse_ranks(data: bytes) -> dict[bytes, int]:
    """Ranks from a tiktoken file (`base64-token rank` per line); raises `ModelError`."""
    pairs = (line.split() for line in data.splitlines())
    try:
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise ModelError(f"the file of tiktoken ranks is damaged ({error})") from error


def with_specials(encoding: tiktoken.Encoding, specials: Sequence[str]) -> tiktoken.Encoding:
    """The encoding with special tokens behind the end of its vocabulary, in the order given.

    Raises:
        InvalidInput: one is empty, no valid Unicode, or a token that is there already.
    """
    ids = dict(encoding._special_tokens)
    for id_, special in enumerate(specials, start=encoding.n_vocab):
        try:
            data = special.encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                f"the special token {special!r} has a lone surrogate; use valid Unicode"
            ) from None
        if not data:
            raise InvalidInput("a special token is empty; give at least one character")
        known = ids.get(special, encoding._mergeable_ranks.get(data))
        if known is not None:
            raise InvalidInput(
                f"{special!r} is token {known} of {encoding.name!r} already; leave it out or "
                f"choose another name"
            )
        ids[special] = id_
    return tiktoken.Encoding(
        "+".join((encoding.name, *specials)),
        pat_str=encoding._pat_str,
        mergeable_ranks=encoding._mergeable_ranks,
        special_tokens=ids,
    )


def split_at(text: str, specials: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """A text's parts in order, each with whether it is a special token; the longest match counts.

    >>> list(split_at("one<|end|>two", ["<|end|>"]))
    [('one', False), ('<|end|>', True), ('two', False)]
    """
    longest_first = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
    if not longest_first:
        yield text, False
        return
    # A group in the pattern keeps what was matched: the parts at odd places.
    for n, part in enumerate(re.split(f"({longest_first})", text)):
        yield part, n % 2 == 1


def fingerprint(encoding: tiktoken.Encoding, added: Iterable[str]) -> str:
    """Hexadecimal SHA-256 of the pre-split pattern, the ranks and the special tokens in `added`."""
    digest = hashlib.sha256(encoding._pat_str.encode())
    ranks = encoding._mergeable_ranks
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        digest.update(b"\n%s %d" % (base64.b64encode(token), rank))
    for special in added:
        id_ = encoding._special_tokens[special]
        digest.update(b"\nspecial %s %d" % (base64.b64encode(special.encode()), id_))
    return digest.hexdigest()
