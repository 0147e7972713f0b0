"""Characters that cannot be stored or shown, made harmless and counted."""

from __future__ import annotations

import os
import re

_LONE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> tuple[str, int]:
    """NUL becomes a space and lone surrogates U+FFFD; returns the text and how many there were.

    >>> clean("a\\x00b")
    ('a b', 1)
    """
    count = text.count("\x00")
    if count:
        text = text.replace("\x00", " ")
    if _LONE.search(text):
        text, lone = _LONE.subn("\ufffd", text)
        count += lone
    return text, count


def display(path: bytes) -> str:
    """A path that can be shown and stored: bytes outside the file system's encoding are escaped.

    >>> display(b"caf\\xe9.txt")
    'caf\\\\xe9.txt'
    """
    return os.fsdecode(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
