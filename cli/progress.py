"""Progress of an indexing run: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ragembed.cli.options import Settings
from ragembed.cli.text import name
from ragembed.indexer import Listener
from ragembed.indexer import Progress as Step

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """`with Reporter(settings) as listener:` gives what `Corpus.sync` calls after each batch."""

    def __init__(self, settings: Settings, *, verbose: bool) -> None:
        self._verbose = verbose
        self._silent = settings.quiet or settings.no_progress
        self._bar: Progress | None = None
        self._started = self._last = time.monotonic()
        self._documents = 0

    def __enter__(self) -> Listener:
        if not self._silent and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("encoding"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(
                    "windows, {task.fields[rate]:.0f}/s, {task.fields[documents]} documents"
                ),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, rate=0.0, documents=0)
            self._bar.start()
        return self._step

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _step(self, step: Step) -> None:
        self._documents += len(step.committed)
        now = time.monotonic()
        rate = step.windows / max(1e-9, now - self._started)
        if self._bar is not None and step.windows_known:
            self._bar.update(
                self._task,
                completed=step.windows,
                total=step.windows_known,
                rate=rate,
                documents=self._documents,
            )
        elif not self._silent and self._bar is None and now - self._last > SECONDS_BETWEEN_LINES:
            self._last = now
            click.echo(
                f"{step.windows:,} of {step.windows_known:,} windows so far ({rate:.0f}/s), "
                f"{self._documents:,} documents",
                err=True,
            )
        if self._verbose:
            for change, path in step.committed:
                shown = name(path.decode("utf-8", "backslashreplace"))
                click.echo(f"{change} {shown}", err=True)
