"""The system calls that change files: their numbers, and what one that is about to happen does.

A call is read while its task waits at the entry: its arguments, what is in memory where they point, and
the files that its descriptors stand for at that moment.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
from dataclasses import dataclass
from pathlib import Path

# name: (number on x86-64, number on aarch64, what its arguments name). `fd`, `path`: the first
# argument; `at`: a directory and a path; `two`, `two-at`: a source and a target; `link`: content and a
# path, `link-at`: content, directory, path; `map`: memory; `all`: nothing.
_TABLE: dict[str, tuple[int | None, int | None, str]] = {
    "write": (1, 64, "fd"),
    "pwrite64": (18, 68, "fd"),
    "writev": (20, 66, "fd"),
    "pwritev": (296, 70, "fd"),
    "pwritev2": (328, 287, "fd"),
    "sendfile": (40, 71, "fd"),
    "copy_file_range": (326, 285, "copy"),
    "open": (2, None, "path"),
    "creat": (85, None, "path"),
    "openat": (257, 56, "at"),
    "openat2": (437, 437, "at"),
    "truncate": (76, 45, "path"),
    "ftruncate": (77, 46, "fd"),
    "fallocate": (285, 47, "fd"),
    "rename": (82, None, "two"),
    "renameat": (264, 38, "two-at"),
    "renameat2": (316, 276, "two-at"),
    "link": (86, None, "two"),
    "linkat": (265, 37, "two-at"),
    "symlink": (88, None, "link"),
    "symlinkat": (266, 36, "link-at"),
    "unlink": (87, None, "path"),
    "unlinkat": (263, 35, "at"),
    "mkdir": (83, None, "path"),
    "mkdirat": (258, 34, "at"),
    "rmdir": (84, None, "path"),
    "fsync": (74, 82, "fd"),
    "fdatasync": (75, 83, "fd"),
    "sync_file_range": (277, 84, "fd"),
    "syncfs": (306, 267, "fd"),
    "sync": (162, 81, "all"),
    "msync": (26, 227, "map"),
    "chmod": (90, None, "path"),
    "fchmod": (91, 52, "fd"),
    "fchmodat": (268, 53, "at"),
    "fchmodat2": (452, 452, "at"),
    "fchown": (93, 55, "fd"),
}
OPENS = frozenset({"open", "creat", "openat", "openat2"})
WRITES = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
SYNCS = frozenset({"fsync", "fdatasync"})
CHANGING = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_AT_FDCWD = -100
_X86 = platform.machine() == "x86_64"
NAMES = {  # by number
    number: (name, kind)
    for name, (x86, arm, kind) in _TABLE.items()
    if (number := x86 if _X86 else arm) is not None
}


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


@dataclass(slots=True)
class Call:
    """A system call that concerns the watched directory, or the pipe of acknowledgements.

    `number` counts the changing calls from 1; it is 0 for the pipe and for opens that only read.
    `offset` and `data` are a write's; `length` a write's, or the size that a file is cut to.
    """

    number: int
    name: str
    path: str
    target: str = ""
    flags: int = 0
    offset: int = 0
    length: int = 0
    data: bytes = b""
    existed: bool = True
    result: int = 0
    is_report: bool = False


class Reader:
    """Reads the calls of traced tasks that concern a directory, or a pipe of acknowledgements."""

    def __init__(self, root: str, pipe: str | None, *, data: bool) -> None:
        """`root` is a real path, `pipe` a link as in /proc/PID/fd; `data`: what is written as well."""
        self.root = root
        self.pipe = pipe
        self.record = data
        self.libc = ctypes.CDLL(None, use_errno=True)

    def read(self, task: int, number: int, words: list[int]) -> Call | None:
        """What a call is about to do; None when it concerns neither the root nor the pipe.

        Raises:
            OSError: the task is gone, or a descriptor or an address is not good.
        """
        name, kind = NAMES[number]
        arguments = [word - (1 << 64) if word >> 63 else word for word in words]
        path, target = self._paths(task, kind, arguments)
        call = Call(0, name, path, target)
        call.is_report = path == self.pipe
        if not (call.is_report or self._concerns(path) or (target and self._concerns(target))):
            return None
        if name in OPENS:
            call.flags = self._open_flags(task, name, arguments)
            call.existed = os.path.lexists(path)
        elif name in WRITES:
            self._describe_write(task, call, arguments)
        elif name in ("truncate", "ftruncate"):
            call.length = arguments[1]
        elif name == "unlinkat":
            call.flags = arguments[2]
        elif name == "fallocate":
            call.flags, call.offset, call.length = arguments[1:4]
        return call

    def _paths(self, task: int, kind: str, arguments: list[int]) -> tuple[str, str]:
        """The path that a call concerns; the second one of a rename or link, or nothing."""
        target = ""
        if kind == "fd":
            path = os.readlink(f"/proc/{task}/fd/{arguments[0]}")
        elif kind == "copy":
            path = os.readlink(f"/proc/{task}/fd/{arguments[2]}")
        elif kind == "map":
            path = self._mapped(task, arguments[0])
        elif kind == "all":
            path = self.root
        elif kind in ("path", "two"):
            path = self._path(task, _AT_FDCWD, arguments[0])
            target = self._path(task, _AT_FDCWD, arguments[1]) if kind == "two" else ""
        elif kind in ("at", "two-at"):
            path = self._path(task, arguments[0], arguments[1])
            target = self._path(task, arguments[2], arguments[3]) if kind == "two-at" else ""
        else:
            directory, at = (_AT_FDCWD, 1) if kind == "link" else (arguments[1], 2)
            path = self._path(task, directory, arguments[at])
        return path, target

    def _describe_write(self, task: int, call: Call, arguments: list[int]) -> None:
        parts = [(arguments[1], arguments[2])]
        if call.name in ("writev", "pwritev", "pwritev2"):
            raw = self._memory(task, arguments[1], 16 * arguments[2])
            parts = list(struct.iter_unpack("<QQ", raw))
        call.length = sum(length for _, length in parts)
        if self.record or call.is_report:
            call.data = b"".join(self._memory(task, base, length) for base, length in parts)
        if call.name in ("pwrite64", "pwritev", "pwritev2"):
            call.offset = arguments[3]
        elif self.record and not call.is_report:
            text = Path(f"/proc/{task}/fdinfo/{arguments[0]}").read_text()
            facts = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            appends = int(facts["flags"], 8) & os.O_APPEND
            size = os.stat(f"/proc/{task}/fd/{arguments[0]}").st_size
            call.offset = size if appends else int(facts["pos"])

    def _open_flags(self, task: int, name: str, arguments: list[int]) -> int:
        if name == "creat":
            return os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        if name == "openat2":
            return int(struct.unpack("<Q", self._memory(task, arguments[2], 8))[0])
        return arguments[1 if name == "open" else 2]

    def _concerns(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + "/")

    def _path(self, task: int, directory: int, address: int) -> str:
        name = self._string(task, address)
        if not name.startswith("/"):
            directory = ctypes.c_int32(directory & 0xFFFFFFFF).value
            link = "cwd" if directory == _AT_FDCWD else f"fd/{directory}"
            name = os.path.join(os.readlink(f"/proc/{task}/{link}"), name)
        return os.path.normpath(name)

    def _mapped(self, task: int, address: int) -> str:
        for line in Path(f"/proc/{task}/maps").read_text().splitlines():
            first, last = (int(part, 16) for part in line.split(None, 1)[0].split("-"))
            if first <= address < last:
                return line.split(None, 5)[5] if len(line.split(None, 5)) == 6 else ""
        return ""

    def _string(self, task: int, address: int) -> str:
        found = b""
        while b"\0" not in found:
            found += self._memory(task, address + len(found), 4096 - (address + len(found)) % 4096)
        return os.fsdecode(found.partition(b"\0")[0])

    def _memory(self, task: int, address: int, length: int) -> bytes:
        buffer = ctypes.create_string_buffer(length)
        here = Vector(ctypes.addressof(buffer), length)
        there = Vector(address, length)
        count = self.libc.process_vm_readv(
            task, ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1),
            ctypes.c_ulong(0),
        )  # fmt: skip
        if count != length:
            raise OSError(errno.EFAULT, f"{count} of {length} bytes of the child could be read")
        return buffer.raw


def describe(call: Call, place: str = "") -> str:
    """A call in a few words, without the parts of its path that are made anew each time.

    >>> describe(Call(3, "openat", "/x/index/vectors-0123456789abcdef0123456789abcdef.faiss"), "/x")
    'openat index/vectors-*.faiss'
    """
    path = call.path.removeprefix(place).lstrip("/")
    return f"{call.name} {re.sub(r'[0-9a-f]{32}|[.]tmp[0-9A-Za-z]{6}', '*', path)}"
