"""Options that several commands share, and where the index is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from ragembed.errors import IndexNotFound

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = ".ragembed"
DATABASE = "ragembed.db"


@dataclass(frozen=True, slots=True)
class Settings:
    """The options in front of the command."""

    directory: str | None = None
    quiet: bool = False
    no_progress: bool = False
    debug: bool = False
    moved: tuple[tuple[str, str], ...] = ()

    @property
    def roots(self) -> dict[str, str]:
        """Where folders are now, by where they were: what `Corpus` takes."""
        return dict(self.moved)


class MovedRoot(click.ParamType):  # type: ignore[type-arg]
    """OLD=NEW."""

    name = "old=new"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, str]:
        """Both sides of the first `=`."""
        old, equals, new = str(value).partition("=")
        if not (old and equals and new):
            self.fail(f"{value!r} is not OLD=NEW: two folders with = between them", param, ctx)
        return old, new


ROOT_HELP = "A folder that has moved since it was indexed (repeatable); `index` writes it down."


def common(function: F) -> F:
    """`--index`, `--quiet`, `--no-progress` and `--debug` after the command as well."""

    def put(name: str) -> Callable[[click.Context, click.Parameter, object], None]:
        def callback(context: click.Context, parameter: click.Parameter, value: object) -> None:
            if value:
                settings = context.obj or Settings()
                if name == "moved":  # before the command and behind it
                    value = (*settings.moved, *value)  # type: ignore[misc]
                context.obj = replace(settings, **{name: value})

        return callback

    options = [
        click.option(
            "--index",
            metavar="DIR",
            expose_value=False,
            callback=put("directory"),
            help="The index directory (or RAGEMBED_INDEX); else the nearest .ragembed upward.",
        ),
        click.option(
            "--root", metavar="OLD=NEW", multiple=True, type=MovedRoot(), expose_value=False,
            callback=put("moved"), help=ROOT_HELP,
        ),
        click.option(
            "--quiet", is_flag=True, expose_value=False, callback=put("quiet"),
            help="Print nothing but data and errors.",
        ),
        click.option(
            "--no-progress", is_flag=True, expose_value=False, callback=put("no_progress"),
            help="Draw no progress bars.",
        ),
        click.option(
            "--debug", is_flag=True, expose_value=False, callback=put("debug"),
            help="Log what happens, and show tracebacks.",
        ),
    ]  # fmt: skip
    for option in options:
        function = option(function)
    return function


def as_json(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")(function)


def find_index(settings: Settings) -> Path | None:
    """The index directory: `--index`, RAGEMBED_INDEX, or the nearest `.ragembed` of the user's."""
    named = settings.directory or os.environ.get("RAGEMBED_INDEX")
    if named:
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        candidate = folder / FOLDER
        try:
            status = candidate.stat()
        except OSError:
            continue
        if candidate.is_dir() and (not hasattr(os, "getuid") or status.st_uid == os.getuid()):
            return candidate
    return None


def existing_index(settings: Settings) -> tuple[Path, bool]:
    """The index to read, and whether it is an empty directory, which is an empty index.

    Raises:
        IndexNotFound: there is none.
    """
    directory = find_index(settings)
    if directory is None:
        raise IndexNotFound(
            f"there is no index here: no {FOLDER} in this folder or above it; "
            "`ragembed index PATH` makes one, or name one with --index"
        )
    if not directory.is_dir():
        raise IndexNotFound(
            f"there is no index in {directory}; `ragembed index --index {directory} PATH` makes one"
        )
    return directory, not any(directory.iterdir())
