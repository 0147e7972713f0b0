"""Which roots, and which part of each, a sync is about."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ragembed.config import ScanConfig
from ragembed.errors import InvalidInput
from ragembed.index.rows import StoredRoot

_SEPARATOR = b"/"


@dataclass(frozen=True, slots=True)
class Target:
    """A root, or the part of it below `subtree`, to be brought up to date.

    `root_id` is None for a root the index does not know yet; `absorbs` are known roots inside a new
    one, whose documents become its own.
    """

    path: bytes
    file: bytes
    subtree: bytes
    config: ScanConfig
    root_id: int | None
    absorbs: tuple[StoredRoot, ...] = ()

    @property
    def place(self) -> bytes:
        """The target's absolute path."""
        return os.path.join(self.path, self.file or self.subtree).rstrip(_SEPARATOR) or _SEPARATOR

    @property
    def display(self) -> str:
        """The target's absolute path for people."""
        return os.fsdecode(self.place)


def targets(
    known: Sequence[StoredRoot], paths: Sequence[str | Path], config: ScanConfig | None
) -> list[Target]:
    """The targets that paths stand for; without any path, all known roots.

    A path inside a known root is a part of it; any other is a root of its own.

    Args:
        known: the roots in the index.
        paths: files and folders, relative to the working directory or absolute.
        config: scan settings for these roots from now on; None keeps what each root has.

    Raises:
        InvalidInput: a path that is not there, or nothing to do.
    """
    if not paths:
        if not known:
            raise InvalidInput("the index knows no folder yet: `ragembed index PATH` adds one")
        return [Target(r.path, r.file, b"", _config(r, config), r.id) for r in known]
    found: dict[tuple[bytes, bytes, bytes], Target] = {}
    for path in paths:
        target = _target(known, path_bytes(path), config)
        found[target.path, target.file, target.subtree] = target
    return [
        target
        for target in found.values()
        if not any(other is not target and _covers(other, target) for other in found.values())
    ]


def _covers(outer: Target, inner: Target) -> bool:
    """Whether a sync of one target is about all of another as well."""
    return not outer.file and relative(outer.place, inner.place) is not None


def _target(known: Sequence[StoredRoot], path: bytes, config: ScanConfig | None) -> Target:
    if not path.strip():
        raise InvalidInput("a path is blank; say . for the working directory")
    real = os.path.realpath(path)
    shown = os.fsdecode(path)
    is_folder = os.path.isdir(real)
    if not is_folder and not os.path.lexists(real):
        raise InvalidInput(f"there is no file or folder {shown!r}")
    for root in known:
        if not root.file and (inside := relative(root.path, real)) is not None:
            return Target(root.path, b"", inside, _config(root, config), root.id)
        if root.file and os.path.join(root.path, root.file) == real:
            return Target(root.path, root.file, b"", _config(root, config), root.id)
    settings = config or ScanConfig()
    if not is_folder:
        return Target(os.path.dirname(real), os.path.basename(real), b"", settings, None)
    inner = tuple(root for root in known if relative(real, root.path) is not None)
    return Target(real, b"", b"", settings, None, inner)


def place_now(path: str, moved: Mapping[str, str]) -> str:
    """Where a stored path is now; `moved` says of folders, or of roots in them, where they went.

    >>> place_now("/home/ada/docs", {"/home/ada": "/mnt/ada"})
    '/mnt/ada/docs'
    """
    for old in sorted(moved, key=len, reverse=True):
        inside = _inside(old, path)
        if inside is not None:
            if _inside(old, moved[old]) and _inside(moved[old], path) is not None:
                return path  # the new place lies inside the old one, and it is there already
            return os.path.join(moved[old], os.fsdecode(inside)) if inside else moved[old]
    return path


def _inside(folder: str, path: str) -> bytes | None:
    return relative(os.fsencode(folder.rstrip(os.sep) or os.sep), os.fsencode(path))


def moved_roots(roots: Sequence[StoredRoot], moved: Mapping[str, str]) -> list[StoredRoot]:
    """Roots where they are now.

    Raises:
        InvalidInput: `moved` names a folder without roots, or two roots would be in one place.
    """
    paths = [os.fsdecode(root.path) for root in roots]
    for old, new in moved.items():
        if not any(
            _inside(old, path) is not None or _inside(new, path) is not None for path in paths
        ):
            raise InvalidInput(
                f"{old!r} is no root of the index, nor above one; `ragembed status` shows them"
            )
    found = [
        replace(root, path=os.fsencode(place_now(path, moved)))
        for root, path in zip(roots, paths, strict=True)
    ]
    if found == list(roots):
        return found
    for root in found:
        for other in found:
            same = (root.path, root.file) == (other.path, other.file)
            within = not other.file and relative(other.path, root.path) is not None
            if root is not other and (same or within):
                raise InvalidInput(
                    f"two roots would be in {os.fsdecode(other.path)}, one inside the other; remove "
                    "one of them first"
                )
    return found


def path_bytes(path: str | Path) -> bytes:
    """A path as the file system's bytes.

    Raises:
        InvalidInput: no file can have that name.
    """
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise InvalidInput(f"{str(path)!r} is no path: no file can have that name")
    return encoded


def relative(root: bytes, path: bytes) -> bytes | None:
    """`path` below `root` with '/' between its parts, b"" for the root itself, None outside."""
    if path == root:
        return b""
    prefix = root if root.endswith(os.fsencode(os.sep)) else root + os.fsencode(os.sep)
    if not path.startswith(prefix):
        return None
    return path[len(prefix) :].replace(os.fsencode(os.sep), _SEPARATOR)


def _config(root: StoredRoot, config: ScanConfig | None) -> ScanConfig:
    return config if config is not None else ScanConfig.from_json(root.scan)


def rebuild_command(known: Sequence[StoredRoot]) -> str:
    """The command that indexes the same roots anew beside this index."""
    roots = [os.path.join(r.path, r.file) if r.file else r.path for r in known]
    paths = " ".join(shlex.quote(os.fsdecode(path)) for path in roots) or "PATH"
    return f"ragembed index --index NEW {paths}"
