"""Which files of a root are to be read: a walk that names everything it leaves out.

The file system is not trusted: entries vanish and change kind between two calls, names are bytes,
trees are deep, links point anywhere. Links are never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass

from ragembed.config import ScanConfig
from ragembed.errors import InvalidInput
from ragembed.readers import ignore
from ragembed.readers.clean import display
from ragembed.readers.formats import unsupported_extension
from ragembed.readers.ignore import Rules, Verdict, as_text

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file to read: `path` is relative to the root, in bytes, with "/" between its parts."""

    path: bytes
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a walk found, each part sorted by path.

    `skipped` holds (path, code, cause) of what cannot be read; files that the user's own ignore
    files and globs leave out are not in it. `unlisted` are folders that could not be listed: what
    is known from below them must be kept, not taken for deleted.
    """

    files: tuple[ScannedFile, ...]
    skipped: tuple[tuple[bytes, str, str], ...]
    unlisted: tuple[bytes, ...]


def os_cause(error: OSError) -> tuple[str, str]:
    """The code and the cause of a system error on a file."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission", "no permission to read it"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        return "vanished", "it was there a moment ago and is gone now"
    return "io", f"the system says: {error.strerror or type(error).__name__}"


def _link_cause(root: bytes, path: bytes) -> tuple[str, str]:
    try:
        target = os.readlink(path)
    except OSError as error:
        return os_cause(error)
    shown = display(target)
    resolved = os.path.realpath(path)
    if resolved != root and not resolved.startswith(root.rstrip(b"/") + b"/"):
        return "outside_root", f"a symbolic link to {shown}, which is outside the root"
    return "symlink", f"a symbolic link to {shown}; links are not followed"


_KEEP = Verdict(False, "")


class _Walker:
    """One walk: the settings that stay the same for every folder."""

    def __init__(self, root: str, config: ScanConfig, protect: Collection[str]) -> None:
        self.root = os.path.realpath(os.fsencode(root))
        self.config = config
        self.protected = {os.path.realpath(os.fsencode(path)) for path in protect}
        self.protects_files = not all(map(os.path.isdir, self.protected))
        self.include = ignore.option_rules(config.include, "--include") if config.include else None
        self.exclude = ignore.option_rules(config.exclude, "--exclude")
        self.asked = self.include is not None or bool(self.exclude.patterns)
        self.files: list[ScannedFile] = []
        self.skipped: list[tuple[bytes, str, str]] = []
        self.unlisted: list[bytes] = []

    def absolute(self, path: bytes) -> bytes:
        return os.path.join(self.root, path) if path else self.root

    def verdict(self, path: bytes, is_folder: bool, rules: tuple[Rules, ...]) -> Verdict:
        """Whether `path` is left out; `rules` are the ignore files above it, outermost first."""
        if why := self.always_out(path, is_folder):
            return Verdict(True, why)
        if not self.asked and not any(rule.patterns for rule in rules):
            return _KEEP
        text = as_text(path)
        if (by_option := self.exclude.verdict(text, is_folder)) and by_option.ignored:
            return by_option
        for rule in reversed(rules):
            if by_file := rule.verdict(text, is_folder):
                if by_file.ignored:
                    return by_file
                break
        if self.include is not None and not is_folder:
            by_include = self.include.verdict(text, False)
            if by_include is None or not by_include.ignored:
                return Verdict(True, "no --include pattern matches it")
        return _KEEP

    def always_out(self, path: bytes, is_folder: bool) -> str:
        """Why no pattern is asked about `path`, or ""."""
        name = path.rsplit(b"/", 1)[-1]
        if is_folder or self.protects_files:  # building absolute paths is most of a scan's time
            absolute = self.absolute(path)
            if absolute in self.protected:
                return "it is the index itself"
            if is_folder and (what := ignore.built_in(name)):
                return f"folders named {display(name)} hold {what}"
            if is_folder and ignore.is_virtual_environment(absolute):
                return "it is a virtual environment (it holds pyvenv.cfg)"
        if name.startswith(b".") and not self.config.hidden:
            return "its name starts with a dot; --hidden reads such files"
        return ""

    def rules_above(self, path: bytes) -> tuple[tuple[Rules, ...], Verdict]:
        """The ignore files from the root down to the folder of `path`, and whether any folder
        on the way is left out."""
        rules = ignore.read_rules(self.root, b"")
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            folder = b"/".join(parts[:depth])
            verdict = self.verdict(folder, True, rules)
            if verdict.ignored:
                shown = display(folder)
                return rules, Verdict(True, f"its folder {shown} is left out: {verdict.why}")
            rules += ignore.read_rules(self.absolute(folder), folder)
        return rules, _KEEP

    def walk(self, start: bytes, rules: tuple[Rules, ...]) -> None:
        """List folder `start` and all below it; `rules` are those of the folders above it."""
        pending = [(start, rules)]
        while pending:
            folder, above = pending.pop()
            try:
                with os.scandir(self.absolute(folder)) as entries:
                    found = sorted((entry.name, entry) for entry in entries)
            except OSError as error:
                self.unlisted.append(folder)
                self.skipped.append((folder, *os_cause(error)))
                continue
            here = above
            # Most folders are under no pattern; asking for each file then is most of a scan's time.
            plain = not (self.asked or self.protects_files or any(r.patterns for r in here))
            if folder and any(name in ignore.IGNORE_FILES for name, _ in found):
                here += ignore.read_rules(self.absolute(folder), folder)
                plain = False
            for name, entry in found:
                path = folder + b"/" + name if folder else name
                try:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    status = None if is_folder else entry.stat(follow_symlinks=False)
                except OSError as error:
                    self.skipped.append((path, *os_cause(error)))
                    continue
                if plain and not is_folder:
                    if name.startswith(b".") and not self.config.hidden:
                        continue
                elif self.verdict(path, is_folder, here).ignored:
                    continue
                if status is None:
                    pending.append((path, here))
                else:
                    self.file(path, status)

    def file(self, path: bytes, status: os.stat_result) -> None:
        if reason := self.unreadable(path, status):
            self.skipped.append((path, *reason))
        else:
            self.files.append(ScannedFile(path, status.st_size, status.st_mtime_ns, status.st_ino))

    def unreadable(self, path: bytes, status: os.stat_result) -> tuple[str, str] | None:
        """The code and cause for a file that cannot be read, judged from outside."""
        if stat.S_ISLNK(status.st_mode):
            return _link_cause(self.root, self.absolute(path))
        if not stat.S_ISREG(status.st_mode):
            kind = next((word for test, word in _KINDS if test(status.st_mode)), "no regular file")
            return "not_regular", f"it is {kind}, not a file with content"
        if extension := unsupported_extension(path):
            return "unsupported", f".{extension} files cannot be read"
        if status.st_size > self.config.max_file_size:
            return "too_big", (
                f"{status.st_size:,} bytes are more than --max-file-size "
                f"({self.config.max_file_size:,})"
            )
        return None

    def result(self) -> Scan:
        files = tuple(sorted(self.files, key=lambda file: file.path))
        return Scan(files, tuple(sorted(self.skipped)), tuple(sorted(self.unlisted)))


def _checked(path: bytes) -> bytes:
    """A relative path without empty parts, dots and ways out of the root."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts or path.startswith(b"/"):
        raise InvalidInput(f"{as_text(path)!r} is not a path below the root")
    return b"/".join(parts)


def scan(
    root: str, config: ScanConfig, *, subtree: bytes = b"", protect: Collection[str] = ()
) -> Scan:
    """List the files of `root` (a folder, or a single file, whose path is then its name).

    Args:
        root: a folder; links in its own path are resolved.
        config: what is left out.
        subtree: only this file or folder, relative to the root; the ignore files above it count.
        protect: absolute paths that are never entered, such as the index directory.

    Raises `InvalidInput` for a glob that is none and for a subtree outside the root. A root or
    subtree that does not exist is reported as skipped.
    """
    walker = _Walker(root, config, protect)
    subtree = _checked(subtree)
    try:
        status = os.lstat(walker.absolute(subtree))
    except OSError as error:
        walker.skipped.append((subtree, *os_cause(error)))
        if not subtree or os_cause(error)[0] != "vanished":
            walker.unlisted.append(subtree)
        return walker.result()
    is_folder = stat.S_ISDIR(status.st_mode)
    if not subtree and not is_folder:  # named by the user: no ignore file has a say
        walker.root, name = os.path.split(walker.root)
        walker.file(name, status)
        return walker.result()
    rules, verdict = walker.rules_above(subtree)
    if verdict.ignored or (subtree and walker.verdict(subtree, is_folder, rules).ignored):
        return walker.result()
    if is_folder:
        walker.walk(subtree, rules)
    else:
        walker.file(subtree, status)
    return walker.result()


def explain(root: str, path: bytes, config: ScanConfig, *, protect: Collection[str] = ()) -> str:
    """One sentence: why `path` (relative to the root) is or is not read, and by which pattern."""
    walker = _Walker(root, config, protect)
    path = _checked(path)
    if not os.path.isdir(walker.root):  # a single file is its own root
        walker.root, path = os.path.split(walker.root)
        return f"{display(path)} is indexed: it was named itself."
    shown = display(path) or "the root"
    try:
        status = os.lstat(walker.absolute(path))
    except OSError as error:
        return f"{shown} is not indexed: {os_cause(error)[1]}."
    is_folder = stat.S_ISDIR(status.st_mode)
    rules, verdict = walker.rules_above(path)
    if not verdict.ignored and path:
        verdict = walker.verdict(path, is_folder, rules)
    if verdict.ignored:
        return f"{shown} is not indexed: {verdict.why}."
    if is_folder:
        return f"{shown} is a folder and is read."
    if reason := walker.unreadable(path, status):
        return f"{shown} is not indexed: {reason[1]}."
    return f"{shown} is indexed: no rule leaves it out."
