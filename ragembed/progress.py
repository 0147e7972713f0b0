"""A progress bar on stderr, drawn only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def _ignore(count: int) -> None:
    """Stand-in for a bar that is not shown."""


@contextmanager
def bar(label: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Draw a bar while the block runs; the value is called with each step done.

    `total` is None where it is not known. Nothing is drawn when `shown` is false or stderr is not a
    terminal.
    """
    if not shown or not sys.stderr.isatty():
        yield _ignore
        return
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
