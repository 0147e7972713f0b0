"""Older formats brought up to date, one number at a time, each in one transaction.

A row whose old checksum did not fit stays one that does not fit: a migration blesses nothing.
"""

from __future__ import annotations

import sqlite3
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files

from ragembed.index.checksums import NEVER, reading_crc, row_crc, vector_crc, window_crc
from ragembed.index.schema import FORMAT


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a database from a format to the present one; the caller holds the writer's lock.

    A crash leaves the old format, whole. Raises sqlite3.Error where rows cannot be read.
    """
    for step in range(version, FORMAT):
        with _step(connection, step + 1):
            _STEPS[step](connection)


@contextmanager
def _step(connection: sqlite3.Connection, version: int) -> Iterator[None]:
    # Tables are dropped and made anew, which foreign keys would take for deletions.
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    finally:
        connection.execute("PRAGMA foreign_keys=ON")


# What format 1 held, in the tables of format 2.
_COPY_1 = (
    "INSERT INTO setting SELECT key, value, row_crc(key, value) FROM setting_1",
    "INSERT INTO root SELECT id, path, file, scan, row_crc(id, path, file, scan) FROM root_1",
    "INSERT INTO model SELECT id, name, fingerprint, dimension, 'float16', "
    "row_crc(id, name, fingerprint, dimension, 'float16') FROM model_1",
    "INSERT INTO document SELECT id, root_id, path, sha256, size, mtime_ns, inode, checked_ns, format, "
    "encoding, language, title, metadata, replaced, passages, windows, tokens, unknown, "
    "document_crc(id, root_id, path, sha256, size, mtime_ns, inode, checked_ns, format, encoding, "
    "language, title, metadata, replaced, crc) FROM document_1",
    "INSERT INTO source SELECT document_id, text FROM source_1",
    "INSERT INTO passage SELECT id, document_id, position, start, end, first_line, last_line, page, "
    "heading, text, passage_crc(id, document_id, position, start, end, first_line, last_line, page, "
    "heading, text, crc) FROM passage_1",
    "INSERT INTO vector SELECT id, model_id, key, data, vector_crc(id, model_id, key, data, crc) "
    "FROM vector_1",
    "INSERT INTO window SELECT w.passage_id, v.model_id, w.position, w.start, w.end, w.vector_id, "
    "window_crc(w.passage_id, v.model_id, w.position, w.start, w.end, w.vector_id) "
    "FROM window_1 w JOIN vector_1 v ON v.id = w.vector_id",
    "INSERT INTO reading SELECT p.id, m.value, p.tokens, p.unknown, "
    "reading_crc(p.id, CAST(m.value AS INTEGER), p.tokens, p.unknown) "
    "FROM passage_1 p JOIN setting_1 m ON m.key = 'model'",
    "INSERT INTO stray SELECT id FROM vector_1 WHERE id NOT IN (SELECT vector_id FROM window_1)",
    "INSERT INTO deletion SELECT generation, kind, id FROM deletion_1",
    "INSERT INTO checkpoint SELECT id, model_id, file, bytes, sha256, vectors, max_vector_id, "
    "generation, 'Flat', 0, 0, row_crc(id, model_id, file, bytes, sha256, vectors, max_vector_id, "
    "generation, 'Flat', 0, 0) FROM checkpoint_1",
    "INSERT INTO skipped SELECT root_id, path, code, cause FROM skipped_1",
)


def _from_1_to_2(connection: sqlite3.Connection) -> None:
    """Checksums over ids as well; windows and token counts per model; vectors without windows listed."""
    functions: list[tuple[str, int, Callable[..., int]]] = [
        ("row_crc", -1, row_crc),
        ("reading_crc", 4, reading_crc),
        ("window_crc", 6, window_crc),
        ("vector_crc", 5, _vector_crc),
        ("passage_crc", 11, _passage_crc),
        ("document_crc", 15, _document_crc),
    ]
    for name, count, function in functions:
        connection.create_function(name, count, function, deterministic=True)
    sequences = connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
    old = connection.execute(
        "SELECT type, name FROM sqlite_schema WHERE sql IS NOT NULL"
    ).fetchall()
    tables = [name for kind, name in old if kind == "table" and not name.startswith("sqlite_")]
    for table in tables:
        connection.execute(f"ALTER TABLE {table} RENAME TO {table}_1")
    for kind, name in old:
        if kind == "index":
            connection.execute(f"DROP INDEX {name}")
    # Once there is a format 3, this step needs the tables of format 2 in a file of their own.
    script = files("ragembed.index").joinpath("schema.sql").read_text(encoding="utf-8")
    for statement in (*statements(script), *_COPY_1):
        connection.execute(statement)
    for table in reversed(tables):
        connection.execute(f"DROP TABLE {table}_1")
    for name, used in sequences:  # an id that was ever used stays used
        changed = connection.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (used, name)
        )
        if not changed.rowcount:
            connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, used)
            )
    history = uuid.uuid4().hex
    connection.execute(
        "INSERT INTO setting VALUES ('history', ?, ?)", (history, row_crc("history", history))
    )


def statements(script: str) -> Iterator[str]:
    """The statements of an SQL script; `executescript` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _vector_crc(id: int, model: int, key: bytes, data: bytes, old: int) -> int:
    return vector_crc(id, model, key, data) if zlib.crc32(data) == old else NEVER


def _passage_crc(id: int, *columns: object) -> int:
    *said, old = columns
    return row_crc(id, *said) if row_crc(*said) == old else NEVER


def _document_crc(*columns: object) -> int:
    *said, old = columns
    path, sha256, language, title, metadata = said[2], said[3], said[10], said[11], said[12]
    return row_crc(*said) if row_crc(path, sha256, title, language, metadata) == old else NEVER


_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1_to_2}
