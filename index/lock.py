"""One writer: an exclusive lock on the file LOCK, released by the system when its holder dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import portalocker

from ragembed.errors import IndexLocked
from ragembed.index import schema
from ragembed.index.disk import make_folder, refuse_network, storage_errors, sync_directory

LOCK = "LOCK"


# Seconds that a writer waits: a reader that mends the lexical files holds the lock for a moment.
PATIENCE = 1.0
_PAUSE = 0.02


@contextmanager
def writer_lock(directory: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the writer's lock while the block runs. The file is never unlinked.

    Raises:
        IndexLocked: another process (or another writer of this one) holds it; its pid is named.
        StorageError: the directory cannot be written, or is on a network file system.
    """
    path = directory / LOCK
    refuse_network(directory)
    deadline = time.monotonic() + patience
    while (file := _take(path, directory)) is None:
        if time.monotonic() >= deadline:
            raise IndexLocked(f"another writer{_holder(path)} holds {path}; wait until it is done")
        time.sleep(_PAUSE)
    with file:
        try:
            with storage_errors(directory):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
            yield
        finally:
            portalocker.unlock(file)


def _take(path: Path, directory: Path) -> FileIO | None:
    """The lock file, locked; None where somebody else holds it."""
    with storage_errors(directory):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    # Unbuffered: closing would try again to write what a full disk has refused, and raise once more.
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        if _locked(file) and _is_still(path, file):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _is_still(path: Path, file: FileIO) -> bool:
    """Whether an open file is the one under a path: the whole index may have been moved aside, and
    another put in its place, between opening the file and getting its lock."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def create_index(directory: Path) -> None:
    """Make an empty index, once: of two that try at the same time the second finds it there.

    Raises:
        NotAnIndex, StorageError: see `schema.create`.
        IndexLocked: another process is making it.
    """
    with storage_errors(directory):
        make_folder(directory)
        sync_directory(directory.parent)  # its name is as durable as what will be in it
        schema.refuse_foreign(directory)
    with writer_lock(directory):
        if not schema.exists(directory):
            schema.create(directory)


def _locked(file: FileIO) -> bool:
    try:
        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.LockException:
        return False
    return True


def _holder(path: Path) -> str:
    """The pid in the lock file; advice only, it may be gone or not readable."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""
    return f" (process {text})" if text.isdigit() else ""
