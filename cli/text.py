"""Text for people: colours on a terminal only, nothing from a document that could move the cursor."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

import click

from ragembed.types import Hit

# C0 and C1 controls but newline and tab; bidirectional and zero-width characters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def escape(text: str) -> str:
    """Unsafe characters as \\xNN or \\uNNNN; a carriage return before a newline goes."""
    return _UNSAFE.sub(
        lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"),
        text.replace("\r\n", "\n"),
    )


def name(path: str) -> str:
    """A path on one line."""
    return escape(path).replace("\n", "\\n").replace("\t", "\\t")


def coloured() -> bool:
    """Whether stdout is a terminal that wants colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def style(text: str, **styles: object) -> str:
    """click's style where colours are wanted."""
    return click.style(text, **styles) if coloured() else text  # type: ignore[arg-type]


def place(path: str, lines: tuple[int, int] | None, page: int | None) -> str:
    """path:first-last, or path and page."""
    if lines is not None:
        return f"{name(path)}:{lines[0]}-{lines[1]}"
    return name(path) if page is None else f"{name(path)} page {page}"


def hit_text(hit: Hit) -> str:
    """A hit as lines: place and score, heading, the passage with sentence and words marked."""
    head = f"{hit.rank}. {style(place(hit.path, hit.lines, hit.page), fg='cyan', bold=True)}"
    lines = [f"{head}  {style(f'{hit.score:.3f}', fg='green')}"]
    heading = " > ".join(hit.heading) or hit.title
    if heading:
        lines.append(f"   {style(name(heading), bold=True)}")
    lines += [f"   {line}" for line in _marked(hit)]
    if hit.also:
        others = ", ".join(place(other.path, other.lines, None) for other in hit.also[:5])
        more = f" and {len(hit.also) - 5} more" if len(hit.also) > 5 else ""
        lines.append(f"   {style(f'also in {others}{more}', dim=True)}")
    return "\n".join(lines)


def _marked(hit: Hit) -> list[str]:
    """The passage's lines; on a terminal bold words, an underlined sentence; else `>` beside it."""
    sentence = hit.highlights[1] if len(hit.highlights) > 1 else (0, 0)
    if not coloured():
        return _with_margin(hit.text, sentence)
    edges = {0, len(hit.text), *sentence, *(edge for word in hit.words for edge in word)}
    cuts = sorted(edges)
    parts = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        inside = sentence[0] <= start and end <= sentence[1]
        word = any(a <= start and end <= b for a, b in hit.words)
        for n, line in enumerate(escape(hit.text[start:end]).split("\n")):
            parts.append("\n" if n else "")
            parts.append(style(line, underline=inside or None, bold=word or None) if line else "")
    return "".join(parts).split("\n")


def _with_margin(text: str, sentence: tuple[int, int]) -> list[str]:
    out = []
    at = 0
    for line in text.split("\n"):
        touched = at < sentence[1] and sentence[0] < at + len(line) + 1 and line.strip()
        out.append(f"{'>' if touched else ' '} {escape(line)}".rstrip())
        at += len(line) + 1
    return out


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side, the last one free."""
    if not rows:
        return []
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    return [
        "  ".join(
            [*(cell.rjust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    ]


def wrap(text: str) -> str:
    """A paragraph in the terminal's width."""
    width = min(100, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "document"), count(2000, "file")
    ('1 document', '2,000 files')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
