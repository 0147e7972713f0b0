"""The rows of a damaged database that can still be read, copied into a new one.

Tables are read by their own key, never through an index: an index may be damaged where its table is
not. Reading goes on behind a page that cannot be read. A row that is not what was written (checksums.py)
is left behind, so that it cannot take the place of one that is.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragembed.errors import IndexDamaged
from ragembed.index import schema
from ragembed.index.checksums import reading_crc, row_crc, vector_crc, window_crc
from ragembed.index.copying import copy_file
from ragembed.index.disk import DATABASE

logger = logging.getLogger(__name__)

# So many keys in a row that cannot be read are the end of a table.
_PATIENCE = 1_000_000
_GAP = 1_000  # keys in a row without a row: those up to the next one are passed over
_HIGHEST = 2**63 - 1
# Documents by id: what their rows say of root id and path.
LeftBehind = dict[int, tuple[Any, bytes]]
_SETTINGS = ("chunking", "faiss", "model")


@dataclass(frozen=True, slots=True)
class _Table:
    """A table to be copied; `key` is its first column, and holds ids of the table `owner`."""

    name: str
    key: str
    owner: str
    columns: int
    is_whole: Callable[..., bool]


def _row(*row: Any) -> bool:  # noqa: ANN401 - damage can turn a column into any type
    return bool(row_crc(*row[:-1]) == row[-1])


def _document(*row: Any) -> bool:  # noqa: ANN401
    return bool(row_crc(*row[:14]) == row[-1])  # all but the counts


def _any(*row: Any) -> bool:  # noqa: ANN401 - passages say whether a text is what it was
    return True


_TABLES = (
    _Table("root", "id", "root", 5, _row),
    _Table("model", "id", "model", 6, _row),
    _Table("document", "id", "document", 19, _document),
    _Table("source", "document_id", "document", 2, _any),
    _Table("passage", "id", "passage", 11, _row),
    _Table("reading", "passage_id", "passage", 5, lambda *row: reading_crc(*row[:-1]) == row[-1]),
    _Table("window", "passage_id", "passage", 7, lambda *row: window_crc(*row[:-1]) == row[-1]),
    _Table("vector", "id", "vector", 5, lambda *row: vector_crc(*row[:-1]) == row[-1]),
)


def scavenge(directory: Path, folder: Path) -> LeftBehind:
    """Copy what can be read of a damaged database into a new one in an empty folder.

    Returns the documents whose own row was left behind.

    Raises:
        IndexDamaged: SQLite cannot open the file at all.
    """
    schema.create(folder)
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode=DELETE")  # one long transaction would fill a log
        copy.execute("PRAGMA synchronous=OFF")
        copy.execute("BEGIN")
        with closing(_open(directory, folder, copy)) as source:
            lost = _copy_all(source, copy)
        copy.execute("COMMIT")
    return lost


def _copy_all(source: sqlite3.Connection, copy: sqlite3.Connection) -> LeftBehind:
    for key in _SETTINGS:
        row = _setting(source, key)
        if row is not None:
            copy.execute("INSERT INTO setting VALUES (?, ?, ?)", row)
    lost: LeftBehind = {}
    for table in _TABLES:
        marks = ", ".join("?" * table.columns)
        left = 0
        if not _is_there(source, table):
            continue
        for row, whole in _readable(source, table):
            if whole and _put(copy, table, marks, row):
                continue
            left += 1
            if table.name == "document" and isinstance(row[2], bytes):
                lost[row[0]] = (row[1], row[2])
        if left:
            logger.warning("%d rows of %s are damaged and were left behind", left, table.name)
    return lost


def _is_there(source: sqlite3.Connection, table: _Table) -> bool:
    try:
        source.execute(f"SELECT {table.key} FROM {table.name} LIMIT 0")
    except sqlite3.DatabaseError as error:
        logger.warning("table %s cannot be read: %s", table.name, error)
        return False
    return True


def _put(copy: sqlite3.Connection, table: _Table, marks: str, row: tuple[Any, ...]) -> bool:
    try:
        copy.execute(f"INSERT OR IGNORE INTO {table.name} VALUES ({marks})", row)
    except sqlite3.IntegrityError:  # a column of another type
        return False
    return True


def _setting(source: sqlite3.Connection, key: str) -> tuple[Any, ...] | None:
    try:
        row: tuple[Any, ...] | None = source.execute(
            "SELECT key, value, crc FROM setting NOT INDEXED WHERE key = ?", (key,)
        ).fetchone()
    except sqlite3.DatabaseError as error:
        logger.warning("setting %s cannot be read: %s", key, error)
        return None
    return row if row is not None and _row(*row) else None


def _readable(source: sqlite3.Connection, table: _Table) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """A table's rows, but for those that cannot be read, and whether each is whole.

    All in one go where that succeeds; else each key is looked up by itself as well, for behind a page
    that cannot be read nothing can be told from the order of rows. Some rows come twice then.
    """
    highest = 0
    try:
        for row in source.execute(f"SELECT * FROM {table.name} ORDER BY {table.key}"):
            whole = len(row) == table.columns and table.is_whole(*row)
            if whole:
                highest = max(highest, row[0])
            yield row, whole
        return
    except sqlite3.DatabaseError as error:
        logger.warning("%s cannot be read in one go: %s", table.name, error)
    for row in _one_by_one(source, table, _last_id(source, table, highest)):
        yield row, len(row) == table.columns and table.is_whole(*row)


def _one_by_one(source: sqlite3.Connection, table: _Table, last: int) -> Iterator[tuple[Any, ...]]:
    """The rows of each key up to `last` that can be looked up."""
    id, misses = 1, 0
    while id <= last and misses < _PATIENCE:
        try:
            rows = source.execute(
                f"SELECT * FROM {table.name} WHERE {table.key} = ?", (id,)
            ).fetchall()
            yield from rows
            misses = 0 if rows else misses + 1
            if misses >= _GAP:
                (following,) = source.execute(
                    f"SELECT min({table.key}) FROM {table.name} WHERE {table.key} > ?", (id,)
                ).fetchone()
                if following is None:
                    return
                id, misses = max(id, following - 1), 0
        except sqlite3.DatabaseError:
            misses += 1
        id += 1


def _last_id(source: sqlite3.Connection, table: _Table, known: int) -> int:
    """The highest key that a table may have."""
    try:
        row = source.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (table.owner,)
        ).fetchone()
    except sqlite3.DatabaseError:
        row = None
    if row is None or not isinstance(row[0], int) or row[0] < known:
        return _HIGHEST  # it is damaged
    return row[0]


# -- opening -----------------------------------------------------------------------------------


def _open(directory: Path, folder: Path, copy: sqlite3.Connection) -> sqlite3.Connection:
    """A connection that reads whatever can be read; nothing is ever written to the directory."""
    source = _connect(directory / DATABASE)
    try:
        if _schema_of(source) == _schema_of(copy):
            return source
    except sqlite3.DatabaseError as error:
        logger.warning("the tables of %s cannot be listed: %s", directory, error)
    source.close()
    # With the definitions of tables put right, in a copy, their rows may be read after all.
    healed = folder / "damaged.db"
    for suffix in ("", "-wal"):
        if (directory / f"{DATABASE}{suffix}").is_file():
            copy_file(directory / f"{DATABASE}{suffix}", Path(f"{healed}{suffix}"))
    with closing(_connect(healed, mode="rw")) as connection:
        try:
            connection.executemany(
                "UPDATE sqlite_schema SET type = ?, tbl_name = ?, sql = ? WHERE name = ?",
                [(kind, table, sql, name) for kind, name, table, sql in _schema_of(copy)],
            )
        except sqlite3.DatabaseError as error:
            logger.warning("the definitions of tables cannot be put right: %s", error)
    return _connect(healed)


def _schema_of(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    ).fetchall()


def _connect(path: Path, mode: str = "ro") -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    try:
        return _tolerant(uri)
    except sqlite3.OperationalError:
        log = path.with_name(path.name + "-wal")
        if os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
            raise
        return _tolerant(uri + "&immutable=1")  # see schema.py
    except sqlite3.DatabaseError as error:
        raise IndexDamaged(
            f"SQLite cannot open {path} ({error}), so nothing of it can be saved: restore a backup, or "
            "index the folders again"
        ) from error


def _tolerant(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        # Goes on with a file that is too short, and past definitions that cannot be parsed.
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection
