"""HTML to readable text with structure, through the lexbor parser of selectolax.

Runs in the sandbox's child process. The encoding is found as browsers do it (byte order mark,
then the declaration), except that valid UTF-8 wins over a declaration and that nothing is decoded
with replacement characters.
"""

from __future__ import annotations

import codecs
import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from ragembed.errors import ReadError
from ragembed.readers.clean import clean
from ragembed.readers.decode import decode
from ragembed.readers.html_layout import Layout
from ragembed.types import Document

_DECLARATION = re.compile(
    rb"""<(?:meta\b[^<>]{0,500}?\bcharset|\?xml\b[^<>]{0,200}?\bencoding)\s*=\s*["']?\s*"""
    rb"""([A-Za-z0-9_.:+-]{2,40})""",
    re.IGNORECASE,
)
_DECLARED_WITHIN = 4096
# Labels mean what browsers take them for: mostly the larger encoding that grew out of the name.
_LABELS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "tis-620": "cp874",
    "iso8859-11": "cp874",
    "utf-16": "utf-8",  # a declaration that could be read as ASCII is not UTF-16
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
    "utf-32": "utf-8",
    "utf-7": "utf-8",
}
_MAIN = "main, article, [role=main]"
_MAIN_SHARE = 0.5
_META = {"author": "author", "description": "description", "keywords": "keywords", "date": "date"}
_LONGEST_META = 1000


def _declared(data: bytes) -> str:
    match = _DECLARATION.search(data[:_DECLARED_WITHIN])
    if match is None:
        return ""
    try:
        name = codecs.lookup(match.group(1).decode("ascii")).name
        "".encode(name)
    except (LookupError, UnicodeError):
        return ""
    return _LABELS.get(name, name)


def _decode(data: bytes, encoding: str | None) -> tuple[str, str]:
    if encoding is not None or data.startswith(_MARKS):
        return decode(data, encoding)
    declared = _declared(data)
    if not data.isascii():
        try:
            return data.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            pass
    if declared and b"\x00" not in data[:_DECLARED_WITHIN]:
        try:
            return data.decode(declared), declared
        except (UnicodeDecodeError, ValueError):
            pass  # the declaration is wrong, as it often is
    return decode(data, None)


_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def _lay_out(root: LexborNode, *, strict: bool) -> Layout:
    layout = Layout(strict=strict)
    layout.render(root)
    return layout


def _content(tree: LexborHTMLParser) -> Layout:
    """The main part where one holds most of the text, else all of the body."""
    body = tree.body or tree.root
    if body is None:
        return Layout(strict=True)
    whole = _lay_out(body, strict=True)
    if not whole.blocks:
        return _lay_out(body, strict=False)  # all of it in a <nav>, a form or the like
    candidates = [_lay_out(node, strict=True) for node in body.css(_MAIN)[:20]]
    best = max(candidates, key=lambda layout: layout.size, default=whole)
    return best if best.size >= _MAIN_SHARE * whole.size else whole


def _metadata(tree: LexborHTMLParser) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in tree.css("meta[name][content]"):
        key = _META.get((node.attributes.get("name") or "").strip().lower())
        value = " ".join((node.attributes.get("content") or "").split())
        if key and value:
            found.setdefault(key, clean(value[:_LONGEST_META])[0])
    root = tree.css_first("html[lang]")
    if root is not None and (language := (root.attributes.get("lang") or "").strip()):
        found["language"] = clean(language[:50])[0]
    return found


def extract_html(data: bytes, encoding: str | None) -> Document:
    """Extract a page's text; the `id` of the result is empty.

    Paragraphs are parted by blank lines, list items begin with "- ", cells are joined by " | ",
    headings stand on lines of their own, `<pre>` is kept as it is. Navigation, scripts, forms'
    controls and hidden elements are left out.
    Raises `ReadError` with "binary", "encoding_unknown" or "no_text".

    >>> extract_html(b"<title>T</title><h1>Head</h1><p>One<p>Two", None).text
    'Head\\n\\nOne\\n\\nTwo'
    """
    source, name = _decode(data, encoding)
    source, replaced = clean(source)
    tree = LexborHTMLParser(source)
    layout = _content(tree)
    if not layout.blocks:
        raise ReadError("no_text", "the page holds no text outside scripts and forms")
    titles = [node.text() for node in tree.css("head > title, body > title, h1")[:2]]
    title = next((words for words in (" ".join(t.split()) for t in titles) if words), "")
    return Document(
        id="",
        text=layout.text(),
        title=title[:_LONGEST_META],
        metadata=_metadata(tree),
        format="html",
        blocks=tuple(layout.blocks),
        encoding=name,
        replaced=replaced,
    )
