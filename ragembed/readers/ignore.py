"""Which paths a scan leaves out: built-in excludes, ignore files, and the caller's globs.

Ignore files work as in git (https://git-scm.com/docs/gitignore): patterns are relative to the
folder of the file that holds them, the last match of a file counts, deeper files win over outer
ones, `.ragembedignore` over `.gitignore` of the same folder, and nothing below an ignored folder
can come back.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from pathspec import GitIgnoreSpec

from ragembed.errors import InvalidInput
from ragembed.readers.clean import display

IGNORE_FILES = (b".ragembedignore", b".gitignore")
_LARGEST_IGNORE_FILE = 1_000_000
_MOST_STARS = 3

_BUILT_IN = {
    **dict.fromkeys((b".git", b".hg", b".svn", b".bzr", b"CVS", b"_darcs"), "version control"),
    **dict.fromkeys(
        (b"__pycache__", b".mypy_cache", b".pytest_cache", b".ruff_cache", b".tox", b".nox")
        + (b".hypothesis", b".ipynb_checkpoints", b".cache", b".eggs"),
        "a cache",
    ),
    b"node_modules": "installed packages",
    b".ragembed": "an index",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a path is left out, and by what, in words."""

    ignored: bool
    why: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The patterns of one ignore file; `folder` is relative to the root, "" for the root."""

    folder: str
    source: str
    patterns: tuple[str, ...]
    spec: GitIgnoreSpec

    def verdict(self, path: str, is_folder: bool) -> Verdict | None:
        """What these patterns say about `path` (relative to the root), None if nothing."""
        if not self.patterns:
            return None
        inside = path[len(self.folder) + 1 :] if self.folder else path
        result = self.spec.check_file(inside + "/" if is_folder else inside)
        if result.include is None or result.index is None:
            return None
        pattern = self.patterns[result.index].strip()
        return Verdict(result.include, f"pattern {pattern!r} in {self.source}")


def make_rules(lines: Sequence[str], source: str, folder: str = "") -> Rules:
    """Rules from lines in gitignore syntax.

    Lines that git would not understand are left out, and so are lines with so many stars that
    matching them could take hours: an ignore file may come from anybody.
    """
    good = tuple(line for line in lines if line.strip() and _is_sound(line))
    return Rules(folder, source, good, GitIgnoreSpec.from_lines(good))


def _is_sound(line: str) -> bool:
    stars = max(segment.count("*") for segment in line.replace("**", "").split("/"))
    if stars > _MOST_STARS or line.count("**") > _MOST_STARS:
        return False
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True


def as_text(path: bytes) -> str:
    """A path for matching: what is not UTF-8 survives as lone surrogates."""
    return path.decode("utf-8", "surrogateescape")


def read_rules(folder: bytes, path: bytes) -> tuple[Rules, ...]:
    """The ignore files in directory `folder` (absolute); `path` is the folder from the root."""
    found: list[Rules] = []
    for name in IGNORE_FILES:
        lines = _read_lines(os.path.join(folder, name))
        if lines:
            source = display(path + b"/" + name if path else name)
            found.append(make_rules(lines, source, as_text(path)))
    return tuple(found)


def _read_lines(path: bytes) -> list[str]:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return []  # none there, or none that git would read
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return []
        data = file.read(_LARGEST_IGNORE_FILE)
    return as_text(data.removeprefix(b"\xef\xbb\xbf")).splitlines()


def option_rules(patterns: Sequence[str], option: str) -> Rules:
    """Rules from globs that the caller gave; raises `InvalidInput` where one cannot be used."""
    for line in patterns:
        if not line.strip() or not _is_sound(line):
            raise InvalidInput(
                f"{option} {line!r} is not a glob in gitignore syntax with at most "
                f"{_MOST_STARS} stars between two slashes"
            )
    return make_rules(patterns, option)


def built_in(name: bytes) -> str:
    """Why a folder of this name is never read, or ""."""
    if fnmatch.fnmatchcase(name.decode("latin-1"), "*.egg-info"):
        return "package metadata"
    return _BUILT_IN.get(name, "")


def is_virtual_environment(folder: bytes) -> bool:
    """Whether `folder` (absolute) is the top of a Python virtual environment."""
    return os.path.lexists(os.path.join(folder, b"pyvenv.cfg"))
