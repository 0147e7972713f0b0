"""Copies and new folders that are there as a whole or not at all: private, durable, hashed on the way."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ragembed.errors import NotAnIndex
from ragembed.index.disk import make_folder, private_opener, sync_directory

_PIECE = 4 << 20  # bytes


def copy_stream(source: BinaryIO, target: Path) -> tuple[int, bytes]:
    """Copy an open file into a new private one, durably; returns its size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with open(target, "xb", opener=private_opener) as file:
        while piece := source.read(_PIECE):
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.digest()


def copy_file(source: Path, target: Path) -> tuple[int, bytes]:
    """As `copy_stream`, of a file by its name."""
    with open(source, "rb") as stream:
        return copy_stream(stream, target)


def write_file(target: Path, content: bytes) -> None:
    """A new private file with some content, durably."""
    with open(target, "xb", opener=private_opener) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def refuse_filled(target: Path) -> None:
    """Make sure that a folder can be made or is empty.

    Raises:
        NotAnIndex: something is there.
    """
    if target.is_dir():
        there = next(target.iterdir(), None)
        if there is not None:
            raise NotAnIndex(
                f"{target} already holds {there.name!r}: name an empty or a new directory"
            )
    elif os.path.lexists(target):
        raise NotAnIndex(f"{target} is no directory: name an empty or a new one")


@contextmanager
def filling(target: Path) -> Iterator[None]:
    """A private folder that the block fills; it is as it was before, should the block raise.

    Raises:
        NotAnIndex: something is there.
    """
    refuse_filled(target)
    was_there = target.is_dir()
    make_folder(target)
    try:
        yield
    except BaseException:
        for path in target.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not was_there:
            target.rmdir()
        raise


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A private folder beside `target` to build in; what is left of it goes when the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, target: Path) -> None:
    """Give a finished folder its name, durably; the name is free, or that of an empty folder."""
    sync_tree(folder)
    if target.is_dir():
        target.rmdir()
    os.rename(folder, target)
    sync_directory(target.parent)


def sync_tree(folder: Path) -> None:
    """Make every file below a folder, and every name, durable."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(place))


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
