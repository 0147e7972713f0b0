"""PDF to text, page by page, through PDFium; runs in the sandbox's child process."""

from __future__ import annotations

import re

import pypdfium2
from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_GetLastError

from ragembed.errors import ReadError
from ragembed.readers.clean import clean
from ragembed.readers.plain import parse_text
from ragembed.types import Document

_MOST_PAGES = 5_000
_FIELDS = {"Author": "author", "Subject": "subject", "Keywords": "keywords", "CreationDate": "date"}
_LONGEST_FIELD = 1000
_LINE_END = re.compile(r"\r\n?")
# PDFium joins a word divided at the end of a line and marks the place with U+FFFE or U+0002.
_SOFT = str.maketrans({"\f": "\n", "\ufffe": "-\n", "\uffff": None, "\x02": "-\n"})


def _open(data: bytes) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", FPDF_GetLastError()) == FPDF_ERR_PASSWORD:
            raise ReadError("encrypted", "the PDF needs a password to be opened") from None
        raise ReadError("broken", f"the PDF cannot be opened: {error}") from None


def _page_text(document: pypdfium2.PdfDocument, number: int) -> str:
    try:
        page = document[number]
        text_page = page.get_textpage()
        try:
            text: str = text_page.get_text_bounded(errors="surrogatepass")
        finally:
            text_page.close()
            page.close()
    except pypdfium2.PdfiumError:
        return ""  # one bad page; `extract_pdf` counts it
    return _LINE_END.sub("\n", text).translate(_SOFT).strip()


def _field(document: pypdfium2.PdfDocument, name: str) -> str:
    try:
        value = str(document.get_metadata_value(name))
    except UnicodeDecodeError:
        return ""  # damaged; the text may be sound all the same
    return clean(" ".join(value.split())[:_LONGEST_FIELD])[0]


def extract_pdf(data: bytes) -> Document:
    """Extract a PDF's text, pages joined by a blank line; the `id` of the result is empty.

    `pages` holds the offset at which each page starts. A word divided at the end of a line is
    left divided. `metadata` has "pages", the number of pages, and what the file says of itself.
    Raises `ReadError`: "encrypted", "broken", "too_big", "no_text".
    """
    document = _open(data)
    try:
        count = len(document)
        if count > _MOST_PAGES:
            raise ReadError("too_big", f"{count:,} pages are more than {_MOST_PAGES:,}")
        if count == 0:
            raise ReadError("broken", "the PDF has no pages")
        texts = [_page_text(document, number) for number in range(count)]
        fields = {name: _field(document, name) for name in (*_FIELDS, "Title")}
    finally:
        document.close()
    if not any(texts):
        raise ReadError(
            "no_text",
            f"none of its {count:,} pages holds text: it looks like a scan, which needs OCR",
        )
    text, replaced = clean("\n\n".join(texts))
    pages: list[int] = []
    at = 0
    for page in texts:
        pages.append(at)
        at += len(page) + 2
    metadata: dict[str, str | int] = {"pages": count}
    for field, name in _FIELDS.items():
        if fields[field]:
            metadata[name] = fields[field]
    return Document(
        id="",
        text=text,
        title=fields["Title"],
        metadata=metadata,
        format="pdf",
        blocks=parse_text(text),
        pages=tuple(pages),
        replaced=replaced,
    )
