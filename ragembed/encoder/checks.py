"""What every encoder asks of the texts it is given, for those that take them all at once."""

from __future__ import annotations

from collections.abc import Iterable

from ragembed.errors import InvalidInput


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
        InvalidInput: one string in place of several, something that is no string, or a blank text.

    >>> checked_texts(line for line in ("one", "two"))
    ['one', 'two']
    """
    if isinstance(texts, str):
        raise InvalidInput("texts is one string; give a list of strings")
    listed = list(texts)
    for n, text in enumerate(listed):
        if not isinstance(text, str):
            raise InvalidInput(f"text {n + 1} is of type {type(text).__name__}; give strings")
        if not text.strip():
            raise InvalidInput(
                f"text {n + 1} of {len(listed)} is blank and has no vector; leave it out"
            )
    return listed
