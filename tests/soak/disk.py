"""A disk that may lose power: which directory states can a log of system calls leave behind?

The model, stricter than common file systems and what POSIX promises:

- A file has durable bytes and, since its last fsync or fdatasync, a list of writes and cuts. After the
  cut each of these may have happened or not, a write in pieces of 512 bytes each for itself (torn
  writes, any order). The size may be that of what arrived, or the one the file had when power went
  (the rest reads as zeros). fsync and fdatasync make all earlier writes, cuts and the size durable.
- A directory has durable entries and, since its last fsync, a list of changes of names (create,
  remove, rename). Of these a prefix has happened, for each directory a prefix of its own. fsync of a
  file says nothing about its name, as fsync(2) warns: only fsync of the directory does. Renames
  within a directory happen as a whole or not at all. Nothing below a directory whose own name is not
  durable is there.
- With `journal` any fsync makes all earlier changes of names durable, as the journals of ext4, XFS
  and Btrfs do for the cases at hand. This tells findings that need a strict POSIX disk from others.
- sync_file_range and msync promise nothing. Modes and owners are not modelled.
- SQLite's `-shm` file is mapped, says nothing after a power cut, and is left out.
- A file that is removed while open is not followed further: its removal may be lost, and with that it
  comes back as it was when it was removed, or with less.

A cut lies between two calls. One inside a call leaves some of that call's pieces, and the states
after the call have these as well.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calls import OPENS, SYNCS, WRITES, Call

PIECE = 512
_IGNORED = frozenset({"chmod", "fchmod", "fchmodat", "fchmodat2", "fchown", "msync"})


class Unmodelled(Exception):
    """The log holds a call whose effect the model does not know."""


@dataclass(slots=True, eq=False)
class File:
    """`pending` are writes (offset, bytes), and cuts (size, None), since the last sync."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        content = bytearray(self.durable)
        for offset, data in self.pending:
            _apply(content, offset, data)
        self.durable, self.pending = bytes(content), []

    def after_cut(self, chance: random.Random, kept: float) -> bytes:
        """What is there after a power cut; `kept` is the share of pieces that have arrived."""
        if not self.pending:
            return self.durable
        content = bytearray(self.durable)
        size = len(content)
        for offset, data in self.pending:
            if data is None:
                size = offset
                if chance.random() < kept:
                    _apply(content, offset, None)
                continue
            size = max(size, offset + len(data))
            start = offset
            while start < offset + len(data):
                end = min((start // PIECE + 1) * PIECE, offset + len(data))
                if chance.random() < kept:
                    _apply(content, start, data[start - offset : end - offset])
                start = end
        if kept < 1 and chance.random() < 0.5:
            _apply(content, size, None)
        return bytes(content)


@dataclass(slots=True, eq=False)
class Directory:
    """`pending` are changes since the last sync: a name and what it stands for then, None if
    nothing; a rename has two."""

    durable: dict[str, Node] = field(default_factory=dict)
    live: dict[str, Node] = field(default_factory=dict)
    pending: list[list[tuple[str, Node | None]]] = field(default_factory=list)

    def change(self, *changes: tuple[str, Node | None]) -> None:
        _enter(self.live, changes)
        self.pending.append(list(changes))

    def sync(self) -> None:
        self.durable, self.pending = dict(self.live), []

    def after_cut(self, count: int) -> dict[str, Node]:
        found = dict(self.durable)
        for changes in self.pending[:count]:
            _enter(found, changes)
        return found


Node = File | Directory
Contents = dict[str, bytes | None]  # path -> content, None for a directory


class Disk:
    """The state of a directory and all below it, on disk and not yet on disk."""

    def __init__(self, root: Path, template: Path, *, journal: bool = False) -> None:
        """`root` is the directory as the log names it, `template` a durable copy to begin with."""
        self._root = os.path.realpath(root)
        self._journal = journal
        self.top = _loaded(template)

    def apply(self, call: Call) -> None:
        """Take in a call that has returned.

        Raises:
            Unmodelled: the model does not know it.
        """
        if call.result < 0 or call.name in _IGNORED or call.path.endswith("-shm"):
            return
        if call.path.endswith(" (deleted)"):
            return
        if call.name in WRITES:
            self._file(call).pending.append((call.offset, call.data[: call.result]))
        elif call.name in ("ftruncate", "truncate"):
            self._file(call).pending.append((call.length, None))
        elif call.name in SYNCS:
            self._sync(call)
        elif call.name != "sync_file_range":
            self._change_names(call)

    def after_cut(self, chance: random.Random) -> Contents:
        """A directory state that may be found when power goes now."""
        kept = chance.choice((0.0, 1.0, 0.1, 0.5, 0.9, None))
        names = chance.choice(("none", "all", "some", "some"))
        found: Contents = {}

        def walk(directory: Directory, path: str) -> None:
            count = {"none": 0, "all": len(directory.pending)}.get(
                names, chance.randint(0, len(directory.pending))
            )
            for name, node in sorted(directory.after_cut(count).items()):
                below = f"{path}{name}"
                if isinstance(node, Directory):
                    found[below] = None
                    walk(node, below + "/")
                else:
                    share = chance.choice((0.0, 0.5, 1.0)) if kept is None else kept
                    found[below] = node.after_cut(chance, share)

        walk(self.top, "")
        return found

    def _change_names(self, call: Call) -> None:
        directory, name = self._parent(call.path)
        if call.name in OPENS:
            if call.flags & os.O_CREAT and name not in directory.live:
                directory.change((name, File()))
            file = directory.live.get(name)
            if call.flags & os.O_TRUNC and isinstance(file, File):
                file.pending.append((0, None))
        elif call.name in ("mkdir", "mkdirat"):
            directory.change((name, Directory()))
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            directory.change((name, None))
        elif call.name in ("rename", "renameat"):
            other, target = self._parent(call.target)
            if other is not directory:
                raise Unmodelled(f"a rename from one directory to another: {call}")
            directory.change((name, None), (target, directory.live[name]))
        else:
            raise Unmodelled(f"the model does not know {call.name}: {call}")

    def _sync(self, call: Call) -> None:
        if self._journal:
            for directory in _directories(self.top):
                directory.sync()
        node = self._node(call.path)
        if node is not None:
            node.sync()

    def _file(self, call: Call) -> File:
        node = self._node(call.path)
        if not isinstance(node, File):
            raise Unmodelled(f"a write to what is no file: {call}")
        return node

    def _parent(self, path: str) -> tuple[Directory, str]:
        parent, _, name = path.rpartition("/")
        node = self._node(parent) if len(path) > len(self._root) else self.top
        if not isinstance(node, Directory):
            raise Unmodelled(f"the directory of {path} is not there")
        return node, name

    def _node(self, path: str) -> Node | None:
        node: Node | None = self.top
        for part in path[len(self._root) :].split("/"):
            if part:
                node = node.live.get(part) if isinstance(node, Directory) else None
        return node


def write_out(contents: Contents, place: Path) -> None:
    """Make a state real."""
    place.mkdir(parents=True)
    for path, content in contents.items():
        if content is None:
            (place / path).mkdir(mode=0o700)
        else:
            (place / path).write_bytes(content)


def digest(contents: Contents) -> int:
    """A number that tells states apart."""
    total = 0
    for path, content in contents.items():
        total = zlib.crc32(path.encode(), zlib.crc32(content or b"", total) + (content is None))
    return total


def replay(
    disk: Disk, calls: Sequence[Call], forget: Callable[[Call], bool]
) -> Iterator[tuple[int, bytes]]:
    """Carry out a log call by call; after each, its place and all that was acknowledged so far.

    Calls that `forget` names are left out, as if the library had not made them.
    """
    reported = b""
    yield 0, reported
    for number, call in enumerate(calls, start=1):
        if call.is_report:
            reported += call.data
        elif not forget(call):
            disk.apply(call)
        yield number, reported


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


def _enter(entries: dict[str, Node], changes: Sequence[tuple[str, Node | None]]) -> None:
    for name, node in changes:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _directories(directory: Directory) -> Iterator[Directory]:
    yield directory
    for node in directory.live.values():
        if isinstance(node, Directory):
            yield from _directories(node)


def _loaded(folder: Path) -> Directory:
    found = Directory()
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            found.live[entry.name] = _loaded(entry)
        elif not entry.name.endswith("-shm"):
            found.live[entry.name] = File(entry.read_bytes())
    found.sync()
    return found
