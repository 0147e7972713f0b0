"""The words of a heading without its markup."""

from __future__ import annotations

import html
import re

# Nobody reads a longer heading; the bound also keeps the patterns below cheap on hostile input.
_LONGEST = 1000

_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_ATTRIBUTES = re.compile(r"\s*\{\s*:?\s*[#.][^{}]*\}$")
_CLOSING = re.compile(r"(^|\s)#+$")
_LINK = re.compile(r"!?\[([^\[\]]*)\](?:\((?:[^()]|\([^()]*\))*\)|\[[^\[\]]*\])")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->")
_AUTOLINK = re.compile(r"<([A-Za-z][A-Za-z0-9+.-]*:[^<>\s]*)>")
_STARS = re.compile(r"(?<!\\)\*+(?=\S)|(?<=\S)(?<!\\)\*+|~~")
_UNDERSCORES = re.compile(r"(?<![\w\\])_+(?=\S)|(?<=\S)(?<!\\)_+(?!\w)")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")

_LITERAL = re.compile(r"(``)(.+?)``")
_ROLE = re.compile(r"(?::[A-Za-z][\w:.+-]*:)?`([^`]+)`(?::[A-Za-z][\w:.+-]*:)?_{0,2}")
_TARGET = re.compile(r"\s*<[^<>]*>$")
_RST_EMPHASIS = re.compile(r"(?<![\w*\\])\*{1,2}(?=\S)([^*]+)(?<=\S)\*{1,2}(?![\w*])")
_REFERENCE = re.compile(r"(?<=\w)_{1,2}(?!\w)|\|(?=\S)|(?<=\S)\|(?=_|\s|$)")


def _shelve(source: str, pattern: re.Pattern[str]) -> tuple[str, list[str]]:
    """Put literal spans aside: each becomes one NUL, so that no rule below looks into it."""
    spans: list[str] = []

    def put(match: re.Match[str]) -> str:
        spans.append(match.group(2).strip())
        return "\x00"

    return pattern.sub(put, source[:_LONGEST].replace("\x00", " ")), spans


def _unshelve(title: str, spans: list[str]) -> str:
    rest = iter(spans)
    return " ".join("".join(next(rest, "") if c == "\x00" else c for c in title).split())


def markdown_title(source: str) -> str:
    """The text of a Markdown heading.

    >>> markdown_title("The **`__init__`** [method](a.md) { #init } ##")
    'The __init__ method'
    """
    title, spans = _shelve(_CLOSING.sub("", source[:_LONGEST]).rstrip(), _CODE_SPAN)
    title = _ATTRIBUTES.sub("", title)
    for _ in range(2):  # an image inside a link
        title = _LINK.sub(r"\1", title)
    title = _TAG.sub("", _AUTOLINK.sub(r"\1", title))
    title = _UNDERSCORES.sub("", _STARS.sub("", title))
    return _unshelve(html.unescape(_ESCAPE.sub(r"\1", title)), spans)


def rst_title(source: str) -> str:
    """The text of a reStructuredText section title.

    >>> rst_title("Using :func:`os.walk` and ``*args`` *well*")
    'Using os.walk and *args well'
    """
    title, spans = _shelve(source, _LITERAL)
    title = _ROLE.sub(lambda match: _TARGET.sub("", match.group(1)), title)
    title = _REFERENCE.sub("", _RST_EMPHASIS.sub(r"\1", title))
    return _unshelve(_ESCAPE.sub(r"\1", title), spans)
