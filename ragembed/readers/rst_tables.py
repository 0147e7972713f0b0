"""The two kinds of tables of reStructuredText: where they end and where their rows do."""

from __future__ import annotations

from collections.abc import Iterator

from ragembed.readers.lines import Line


def is_simple_border(content: str) -> bool:
    """Whether a line is `====  ====`: at least two runs of equals signs."""
    if not content.startswith("="):
        return False
    runs = content.split()
    return len(runs) > 1 and not content.replace("=", "").strip(" ")


def _is_grid_border(content: str) -> bool:
    if not content.startswith("+") or len(content) < 3 or content[1] not in "-=":
        return False
    return content.endswith("+") and not content.strip("+-=")


def _simple_end(lines: list[Line], start: int) -> int:
    """The line after the bottom border: the second one after the top, or one before a blank."""
    found = 0
    last = 0
    for at in range(start + 1, len(lines)):
        if not is_simple_border(lines[at].content):
            continue
        found += 1
        last = at + 1
        if found == 2 or last == len(lines) or lines[last].gap:
            break
    return last


def table_end(lines: list[Line], start: int) -> int:
    """The line after the table that starts at `start`, or 0 if none starts there."""
    if is_simple_border(lines[start].content):
        return _simple_end(lines, start)
    if not _is_grid_border(lines[start].content):
        return 0
    stop = start + 1
    while stop < len(lines) and not lines[stop].gap and lines[stop].content[0] in "+|":
        stop += 1
    return stop if stop - start > 2 else 0


def table_rows(lines: list[Line], start: int, stop: int) -> Iterator[int]:
    """The line after each row; borders belong to the row above, the top one to the first."""
    if is_simple_border(lines[start].content):
        return _simple_rows(lines, start, stop)
    return _grid_rows(lines, start, stop)


def _simple_rows(lines: list[Line], start: int, stop: int) -> Iterator[int]:
    borders = [at for at in range(start + 1, stop) if is_simple_border(lines[at].content)]
    at = start + 1
    if len(borders) > 1:  # all header lines are one row
        at = borders[0] + 1
        yield at
    column = lines[start].indent
    for row in range(at, stop):
        line = lines[row]
        # A row whose first cell is empty continues the row above, unless a blank line parts them.
        if is_simple_border(line.content) or (line.indent > column and not line.gap):
            continue
        if row > at:
            yield row
    yield stop


def _grid_rows(lines: list[Line], start: int, stop: int) -> Iterator[int]:
    for at in range(start + 1, stop - 1):
        if _is_grid_border(lines[at].content):
            yield at + 1
    yield stop
