"""What the index asks of the file system: durable names, private files, locks that hold, clear errors."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ragembed.errors import IndexDamaged, IndexFailure, StorageError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
DATABASE = "ragembed.db"

# SQLite's primary result codes that mean disk or permission (permission, read-only, input/output, full,
# cannot open), and those that mean damage (corrupt, not a database).
_STORAGE_CODES = {3, 8, 10, 13, 14}
_DAMAGE_CODES = {11, 26}
_DAMAGE_SIGNS = ("malformed", "not a database", "Could not decode")

# Locks and shared memory do not hold across the machines that share one of these.
_NETWORK = {
    "9p", "afp", "afpfs", "afs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "lustre", "ncpfs",
    "nfs", "nfs3", "nfs4", "smb", "smb2", "smb3", "smbfs", "webdav",
}  # fmt: skip
_NETWORK_FUSE = ("ceph", "davfs", "gcsfuse", "glusterfs", "rclone", "s3fs", "sshfs")


def refuse_network(directory: Path) -> None:
    """Make sure that a directory is on a file system of this machine.

    Raises:
        StorageError: it is on a network file system.
    """
    kind = file_system(directory)
    if kind in _NETWORK or (kind.startswith("fuse") and kind.endswith(_NETWORK_FUSE)):
        raise StorageError(
            f"{directory} is on a network file system ({kind}), where locks do not hold and an index "
            "can be destroyed: keep it on a local disk, and copy it with `ragembed backup`"
        )


def file_system(directory: Path) -> str:
    """The type of the file system that a path is on, in lower case; empty where it cannot be told."""
    path = os.path.realpath(directory)
    best, kind = "", ""
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, RuntimeError):  # a sandbox without /proc
        return ""
    for mount in mounts:
        point = mount.mountpoint
        inside = path == point or path.startswith(point.rstrip(os.sep) + os.sep)
        if inside and len(point) >= len(best):  # a later mount covers an earlier one
            best, kind = point, mount.fstype
    return kind.lower()


def make_private(directory: Path) -> None:
    """Take away what a library's own files grant to others than the user."""
    if os.name != "posix":
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
                if mode & 0o077 and entry.is_file(follow_symlinks=False):
                    os.chmod(entry.path, mode & PRIVATE_FOLDER)
            except FileNotFoundError:
                continue  # the library's own threads come and go with theirs


def make_folder(directory: Path) -> None:
    """Make a directory that only the user can look into; one that is there and empty becomes so."""
    directory.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    if os.name == "posix" and stat.S_IMODE(directory.stat().st_mode) & 0o077:
        if not any(directory.iterdir()):
            directory.chmod(PRIVATE_FOLDER)


def private_opener(path: str, flags: int) -> int:
    """For `open`: a new file that only the user can read."""
    return os.open(path, flags, PRIVATE_FILE)


def sync_file(file: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable (POSIX: a rename is safe only after this)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Turn what the disk and SQLite say into errors that name the directory and the remedy."""
    try:
        yield
    except IndexFailure:
        raise
    except OSError as error:
        raise StorageError(
            f"{error.filename or directory}: {error.strerror or error}; see to space and permissions, "
            "nothing that was acknowledged is lost"
        ) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # Python 3.10 has no sqlite_errorcode; the text is the same there.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = str(error)
        damaged = isinstance(error, UnicodeDecodeError) or code in _DAMAGE_CODES
        if damaged or any(sign in text for sign in _DAMAGE_SIGNS):
            raise IndexDamaged(damage_message(directory, text)) from error
        if code in _STORAGE_CODES or "disk" in text or "readonly" in text or "unable" in text:
            raise StorageError(
                f"{directory}: {text}; see to space and permissions, nothing that was acknowledged "
                "is lost"
            ) from error
        raise


def damage_message(directory: Path, what: str) -> str:
    """The sentence that every error about damaged rows says."""
    return (
        f"{directory / DATABASE} is damaged ({what}): `ragembed verify` says where; restore a backup, or "
        "save what can be read into a new index with `ragembed repair --into NEW`"
    )
