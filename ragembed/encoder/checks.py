"""What every encoder asks of the texts it is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ragembed.errors import InvalidInput


def checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts as they come.

    Raises:
        InvalidInput: one string in place of several, something that is no string, or a blank text.

    >>> list(checked(line for line in ("one", "two")))
    ['one', 'two']
    """
    if isinstance(texts, str):
        raise InvalidInput("texts is one string; give a list of strings")
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"text {n + 1} is of type {type(text).__name__}; give strings")
        if not text.strip():
            raise InvalidInput(f"text {n + 1} is blank and has no vector; leave it out")
        yield text
