"""The database file: opening it with the right settings, creating it, knowing it for ours."""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing
from functools import cache
from importlib.resources import files
from pathlib import Path

from ragembed.errors import IndexDamaged, IndexNotFound, IndexVersionError, NotAnIndex
from ragembed.index.checksums import row_crc
from ragembed.index.disk import (
    DATABASE,
    PRIVATE_FILE,
    damage_message,
    refuse_network,
    storage_errors,
    sync_directory,
    sync_file,
)

APPLICATION_ID = 0x72616745  # "ragE"
FORMAT = 2
_DRAFT_SUFFIXES = (".new", ".new-journal", ".new-wal", ".new-shm")
BUSY_TIMEOUT = 30.0  # seconds that SQLite waits for another connection's lock


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
        draft.touch(mode=PRIVATE_FILE)
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            # WAL from the start: a later change of mode that is cut short leaves a journal, which
            # readers may not roll back. Durable by the fsync below, as a whole.
            connection.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; BEGIN;"
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
                + _schema()
            )
            first = {"generation": "0", "floor": "0", "history": uuid.uuid4().hex}
            connection.executemany(
                "INSERT INTO setting VALUES (?, ?, ?)",
                [(key, value, row_crc(key, value)) for key, value in first.items()],
            )
            connection.execute("COMMIT")
        finally:
            connection.close()
        sync_file(draft)
        os.replace(draft, directory / DATABASE)
        sync_directory(directory)


def connect(directory: Path, *, write: bool, migrate: bool = False) -> sqlite3.Connection:
    """Open the database and make sure it is one of ours.

    Args:
        directory: of the index.
        write: for the one writer, which holds the lock.
        migrate: older formats are welcome; the caller brings them up to date.

    Raises:
        IndexNotFound, NotAnIndex, IndexVersionError, IndexDamaged, StorageError.
    """
    path = directory / DATABASE
    if not path.is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise NotAnIndex(f"{directory} is not a ragembed index: there is no {DATABASE} in it")
        raise IndexNotFound(f"there is no index in {directory}; `ragembed index PATH` makes one")
    refuse_network(directory)
    with storage_errors(directory):
        connection = _open(path, write)
        try:
            version = _format_of(connection, path)
            if version != FORMAT and not migrate:
                raise IndexVersionError(
                    f"{path} has format {version} and this ragembed works with {FORMAT}: open it once "
                    "where it can be written, `ragembed index` brings it up to date"
                )
            if version == FORMAT:
                _check_tables(connection, path)
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


def _check_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Every table and index as this version makes it, and nothing else: no trigger, no view."""
    statement = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    if connection.execute(statement).fetchall() != _expected_tables(statement):
        raise IndexDamaged(
            damage_message(path.parent, f"its tables are not those of format {FORMAT}")
        )


@cache
def _expected_tables(statement: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_schema())
        return connection.execute(statement).fetchall()


def _schema() -> str:
    return files("ragembed.index").joinpath("schema.sql").read_text(encoding="utf-8")


def stored_format(directory: Path) -> int:
    """The format of the index in a directory; raises as `connect`."""
    connection = connect(directory, write=False, migrate=True)
    try:
        return _format_of(connection, directory / DATABASE)
    finally:
        connection.close()


def _open(path: Path, write: bool) -> sqlite3.Connection:
    uri = path.resolve().as_uri() + ("?mode=rw" if write else "?mode=ro")
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
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


def _format_of(connection: sqlite3.Connection, path: Path) -> int:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise NotAnIndex(f"{path} is not a ragembed database (application id {application:#x})")
    if version > FORMAT:
        raise IndexVersionError(
            f"{path} has format {version} and this ragembed reads up to {FORMAT}: upgrade ragembed"
        )
    return int(version)
