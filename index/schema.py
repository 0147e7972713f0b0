"""The database file: opening it with the right settings, creating it, knowing it for ours."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from ragembed.errors import (
    IndexDamaged,
    IndexFailure,
    IndexNotFound,
    IndexVersionError,
    NotAnIndex,
    StorageError,
)

APPLICATION_ID = 0x72616745  # "ragE"
FORMAT = 1
DATABASE = "ragembed.db"
_DRAFT_SUFFIXES = (".new", ".new-journal", ".new-wal", ".new-shm")

# SQLite's primary result codes that mean disk or permission, and those that mean damage.
_STORAGE_CODES = {
    3: "permission",
    8: "read-only",
    10: "input/output",
    13: "disk full",
    14: "cannot open",
}
_DAMAGE_CODES = {11, 26}


def exists(directory: Path) -> bool:
    """Whether a directory holds an index."""
    return (directory / DATABASE).is_file()


def refuse_foreign(directory: Path) -> None:
    """Make sure that an index can be made in a directory, before anything is written there.

    Raises:
        NotAnIndex: it holds files that are not of an index in the making.
    """
    draft = {DATABASE + suffix for suffix in _DRAFT_SUFFIXES}
    foreign = sorted(set(os.listdir(directory)) - {"LOCK", DATABASE} - draft)
    if foreign and not exists(directory):
        raise NotAnIndex(
            f"{directory} is not a ragembed index: it holds {foreign[0]!r} and no {DATABASE}; "
            "name an empty or a new directory"
        )


def create(directory: Path) -> None:
    """Make an empty database in a directory; the caller holds the writer's lock.

    Raises:
        NotAnIndex: the directory holds other files.
        StorageError: it cannot be written.
    """
    with storage_errors(directory):
        refuse_foreign(directory)
        # Built under another name: a crash leaves no half database behind the real one.
        for suffix in _DRAFT_SUFFIXES:
            (directory / f"{DATABASE}{suffix}").unlink(missing_ok=True)
        draft = directory / f"{DATABASE}.new"
        draft.touch(mode=0o600)
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.executescript(
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
                + files("ragembed.index").joinpath("schema.sql").read_text(encoding="utf-8")
                + "INSERT INTO setting VALUES ('generation', '0'), ('floor', '0');"
            )
        finally:
            connection.close()
        os.replace(draft, directory / DATABASE)
        sync_directory(directory)


def connect(directory: Path, *, write: bool) -> sqlite3.Connection:
    """Open the database and make sure it is one of ours.

    Raises:
        IndexNotFound, NotAnIndex, IndexVersionError, IndexDamaged, StorageError.
    """
    path = directory / DATABASE
    if not path.is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise NotAnIndex(f"{directory} is not a ragembed index: there is no {DATABASE} in it")
        raise IndexNotFound(f"there is no index in {directory}; `ragembed index PATH` makes one")
    with storage_errors(directory):
        connection = _open(path, write)
        try:
            _check_identity(connection, path)
            for pragma in (
                "foreign_keys=ON",
                "trusted_schema=OFF",
                "cell_size_check=ON",
                "mmap_size=0",
            ):
                connection.execute(f"PRAGMA {pragma}")
            if write:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
    return connection


def _open(path: Path, write: bool) -> sqlite3.Connection:
    uri = path.resolve().as_uri() + ("?mode=rw" if write else "?mode=ro")
    connection = sqlite3.connect(
        uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        # WAL needs a shared-memory file beside the database; read-only media cannot give one.
        # Without a log there is nothing in it that could be missed.
        log = path.with_name(path.name + "-wal")
        if write or os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
            connection.close()
            raise
        connection.close()
        connection = sqlite3.connect(
            uri + "&immutable=1", uri=True, isolation_level=None, check_same_thread=False
        )
    return connection


def _check_identity(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise NotAnIndex(f"{path} is not a ragembed database (application id {application:#x})")
    if version > FORMAT:
        raise IndexVersionError(
            f"{path} has format {version} and this ragembed reads up to {FORMAT}: upgrade ragembed"
        )


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
        if damaged or "malformed" in text or "not a database" in text:
            raise IndexDamaged(
                f"{directory / DATABASE} is damaged ({text}): `ragembed verify` says where; restore a "
                "backup, or index the folders again into a new directory"
            ) from error
        if code in _STORAGE_CODES or "disk" in text or "readonly" in text or "unable" in text:
            raise StorageError(
                f"{directory}: {text}; see to space and permissions, nothing that was acknowledged "
                "is lost"
            ) from error
        raise
