"""Bytes to text: byte order mark, strict UTF-8, likelihood of legacy encodings, or a refusal.

Nothing is ever decoded with errors="replace": a wrong text in an index is worse than a skipped
file, which is named in the report and can be read with `--encoding`.
"""

from __future__ import annotations

import codecs
import importlib
import re

from ragembed.errors import ReadError
from ragembed.readers.charset import guess

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts like UTF-16's, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 64 * 1024
_MOST_CONTROLS = 0.05
_MOST_REPLACEMENTS = 0.001
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # not tab, line ends, VT, FF, ESC
_ESCAPE_CODES = ((b"\x1b$)C", "iso2022_kr"), (b"\x1b$", "iso2022_jp_2"))

_FEWEST_HIGH = 64  # bytes outside ASCII below which the general detector is not asked
_MOST_CHAOS = 0.02
_LEAST_COHERENCE = 0.4


def _decoded(data: bytes, encoding: str, why: str) -> str:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, UnicodeError) as error:
        where = f" at byte {error.start:,}" if isinstance(error, UnicodeDecodeError) else ""
        raise ReadError(
            "encoding_unknown",
            f"the bytes are not {encoding}{where}, although {why}; "
            "give the right name with --encoding",
        ) from None


def _check_text(data: bytes) -> None:
    head = data[:_HEAD]
    if b"\x00" in head:
        raise ReadError("binary", "the file holds NUL bytes and no byte order mark: not a text")
    controls = len(_CONTROL.findall(head))
    if controls > _MOST_CONTROLS * len(head):
        share = 100 * controls / len(head)
        raise ReadError(
            "binary", f"{share:.0f} % of the first bytes are control characters: not a text"
        )


def _general_guess(data: bytes) -> tuple[str, str] | None:
    """charset-normalizer's opinion, where it is sure and has enough to go by."""
    if sum(byte > 0x7F for byte in data[:_HEAD]) < _FEWEST_HIGH:
        return None
    # Imported here because few runs meet a file that needs it, and start-up would pay for all.
    detector = importlib.import_module("charset_normalizer")
    best = detector.from_bytes(data).best()
    if best is None or best.chaos > _MOST_CHAOS or best.coherence < _LEAST_COHERENCE:
        return None
    return str(best), str(best.encoding)


def _check_replacements(text: str) -> None:
    count = text.count("\ufffd")
    if count > _MOST_REPLACEMENTS * len(text):
        raise ReadError(
            "encoding_unknown",
            f"{count:,} of {len(text):,} characters are U+FFFD: the text was damaged by a wrong "
            "decoding before it was saved",
        )


def _find(data: bytes) -> tuple[str, str]:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            why = "the file starts with its byte order mark"
            return _decoded(data, encoding, why).removeprefix("\ufeff"), encoding
    for sequence, encoding in _ESCAPE_CODES:
        if sequence in data and data.isascii():
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError:
                break  # escape codes of something else, such as a terminal
    _check_text(data)
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        where = error.start
    if found := guess(data):
        return found.text, found.encoding
    if general := _general_guess(data):
        return general
    raise ReadError(
        "encoding_unknown",
        f"the bytes are not UTF-8 (byte {where:,} is 0x{data[where]:02X}) and no other encoding is "
        "clearly right; name it with --encoding",
    )


def decode(data: bytes, encoding: str | None) -> tuple[str, str]:
    """Decode a file's bytes; `encoding` is used as it is when given.

    Returns the text without a byte order mark, and the name of the encoding.
    Raises `ReadError` with code "binary" or "encoding_unknown".

    >>> decode(b"caf\\xe9 et cr\\xe8me br\\xfbl\\xe9e pour vous", None)
    ('café et crème brûlée pour vous', 'cp1252')
    """
    if encoding is not None:
        text = _decoded(data, encoding, "--encoding says so").removeprefix("\ufeff")
        if "\x00" in text[:_HEAD]:
            raise ReadError("binary", f"read as {encoding}, the file holds NUL characters")
        name = encoding
    else:
        text, name = _find(data)
    _check_replacements(text)
    return text, name
