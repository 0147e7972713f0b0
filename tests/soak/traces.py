"""What is left of a text in the files of an index: its mark (compressed as well), its hash, its vector.

A mark is a word that no other text has. tantivy cuts words into pieces of a shared tree, so its files
are asked for the term instead; it counts the passages that are deleted and not yet merged away.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from basics import FIRST, SECOND, embedder, mark_of

from ragembed.index.analysis import terms
from ragembed.index.lexical import LexicalFailure, LexicalIndex

_STREAM = b"\x78\x9c"  # how a zlib stream of the level in use begins
_STEP, _LONGEST = 64, 1 << 15  # bytes that are inflated at a time, and of a stream at most


def traces_of(text: str, index: Path) -> list[str]:
    """Where something of a text is left; empty when there is nothing."""
    found = []
    mark = mark_of(text).encode()
    signs = _signs(text)
    for file in sorted(index.rglob("*")):
        if not file.is_file():
            continue
        name, data = str(file.relative_to(index)), file.read_bytes()
        found += [f"its {what} in {name}" for what, sign in signs.items() if sign in data]
        if any(mark in inflated for inflated in _inflated(data)):
            found.append(f"its mark, compressed, in {name}")
    return found + _terms_left(text, index)


@cache
def _signs(text: str) -> dict[str, bytes]:
    """Byte strings that only this text can have left behind."""
    signs = {
        "mark": mark_of(text).encode(),
        "hash": hashlib.sha256(text.encode()).digest(),
    }
    for fingerprint in (FIRST, SECOND):
        # Of a text with one window this is what was stored; a longer one has no such vector.
        vector = embedder(fingerprint).encode_query([text])[0]
        signs[f"vector of {fingerprint}"] = vector.astype(np.float16).tobytes()
    return signs


def _inflated(data: bytes) -> Iterator[bytes]:
    """The beginning of whatever zlib can read, at any place."""
    place = data.find(_STREAM)
    while place >= 0:
        stream, out = zlib.decompressobj(), b""
        try:
            for first in range(place, min(len(data), place + _LONGEST), _STEP):
                out += stream.decompress(data[first : first + _STEP])
                if stream.eof:
                    break
        except zlib.error:
            pass  # what came before it is of interest
        if out:
            yield out
        place = data.find(_STREAM, place + 1)


def _terms_left(text: str, index: Path) -> list[str]:
    try:
        lexical = LexicalIndex.open(index).snapshot
    except LexicalFailure:
        return []  # not readable; whoever opens the index builds it again
    left = [term for term in terms(mark_of(text), "english") if lexical.document_frequency(term)]
    return [f"the term {term!r} in the lexical files" for term in left]
