"""Reading the database: documents, passages, windows, vectors, as one snapshot at a time."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import IndexDamaged
from ragembed.index import schema
from ragembed.index.rows import (
    FileFacts,
    StoredDocument,
    StoredModel,
    StoredPassage,
    StoredRoot,
)
from ragembed.index.vectors import Checkpoint

logger = logging.getLogger(__name__)

_DOCUMENT = (
    "SELECT id, root_id, path, sha256, size, mtime_ns, inode, checked_ns, format, encoding, title, "
    "metadata, passages, windows, tokens, unknown FROM document"
)
_PASSAGE = (
    "SELECT p.id, p.document_id, p.start, p.end, p.first_line, p.last_line, p.page, p.heading, "
    "p.tokens, p.unknown, p.text, d.root_id, d.path, d.title, d.language, d.metadata, d.sha256, "
    "p.crc, p.position, d.crc "
    "FROM passage p JOIN document d ON d.id = p.document_id"
)


class Store:
    """A connection to the database; every method reads."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self.connection = connection
        # A damaged text has to be seen by its checksum, not to end the whole query.
        connection.text_factory = _lenient

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open for reading; raises as `schema.connect`."""
        return cls(directory, schema.connect(directory, write=False))

    def close(self) -> None:
        """Release the file."""
        self.connection.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read in the block is of one commit."""
        with schema.storage_errors(self.directory):
            if self.connection.in_transaction:  # inside another snapshot, or a writer's transaction
                yield
                return
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.connection.execute("ROLLBACK")

    def data_version(self) -> int:
        """A number that changes when another connection has committed."""
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def setting(self, key: str) -> str | None:
        """A setting's value, None where it was never set."""
        row = self.connection.execute("SELECT value FROM setting WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def generation(self) -> int:
        """Commits so far."""
        return int(self.setting("generation") or 0)

    @property
    def floor(self) -> int:
        """Generation from which on the deletion log is complete."""
        return int(self.setting("floor") or 0)

    def model(self) -> StoredModel | None:
        """The model whose vectors answer; None in an empty index."""
        row = self.connection.execute(
            "SELECT id, name, fingerprint, dimension FROM model "
            "WHERE id = (SELECT value FROM setting WHERE key = 'model')"
        ).fetchone()
        return None if row is None else StoredModel(*row)

    def counts(self) -> tuple[int, int, int]:
        """Documents, passages, windows."""
        row = self.connection.execute(
            "SELECT count(*), ifnull(sum(passages), 0), ifnull(sum(windows), 0) FROM document"
        ).fetchone()
        return (int(row[0]), int(row[1]), int(row[2]))

    def languages(self) -> list[str]:
        """The languages of the stored documents."""
        rows = self.connection.execute("SELECT DISTINCT language FROM document ORDER BY language")
        return [language for (language,) in rows]

    def roots(self) -> list[StoredRoot]:
        """All roots, in the order they were added."""
        rows = self.connection.execute("SELECT id, path, file, scan FROM root ORDER BY id")
        return [StoredRoot(id, path, file, json.loads(scan)) for id, path, file, scan in rows]

    def documents(self, root_id: int | None = None, *, texts: bool = False) -> list[StoredDocument]:
        """Documents by path: of one root, of all (neither argument), or the texts only."""
        if texts:
            rows = self.connection.execute(_DOCUMENT + " WHERE root_id IS NULL ORDER BY path")
        elif root_id is None:
            rows = self.connection.execute(_DOCUMENT + " ORDER BY root_id, path")
        else:
            rows = self.connection.execute(
                _DOCUMENT + " WHERE root_id = ? ORDER BY path", (root_id,)
            )
        return [_document(row) for row in rows]

    def skipped(self) -> list[tuple[int, bytes, str, str]]:
        """What the last sync of each root left out: root id, path, code, cause."""
        rows = self.connection.execute(
            "SELECT root_id, path, code, cause FROM skipped ORDER BY root_id, path"
        )
        return list(rows)

    def source_text(self, document_id: int) -> str:
        """The text that a document's spans refer to."""
        row = self.connection.execute(
            "SELECT text FROM source WHERE document_id = ?", (document_id,)
        ).fetchone()
        try:
            return zlib.decompress(row[0]).decode()
        except (TypeError, zlib.error, UnicodeDecodeError) as error:
            raise IndexDamaged(
                f"the text of document {document_id} in {self.directory} is damaged ({error}): index "
                "its file again"
            ) from None

    def passages(self, passage_ids: Sequence[int]) -> dict[int, StoredPassage]:
        """Passages by id. A row that is not what was written is left out and logged, never served."""
        found = {}
        for part in _parts(passage_ids):
            marks = ",".join("?" * len(part))
            for row in self.connection.execute(f"{_PASSAGE} WHERE p.id IN ({marks})", part):
                *_, crc, position, document = row
                if (
                    passage_crc(row[1], position, *row[2:8], row[10]) != crc
                    or document_crc(row[12], row[16], row[13], row[14], row[15]) != document
                ):
                    logger.warning(
                        "passage %d is damaged and was left out; `ragembed verify` says more",
                        row[0],
                    )
                    continue
                found[row[0]] = _passage(row)
        return found

    def passages_of_vectors(self, vector_ids: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """(vector id, passage id, start, end) of every window that has one of the vectors."""
        found: list[tuple[int, int, int, int]] = []
        for part in _parts(vector_ids):
            marks = ",".join("?" * len(part))
            found += self.connection.execute(
                f"SELECT vector_id, passage_id, start, end FROM window WHERE vector_id IN ({marks}) "
                "ORDER BY passage_id, position",
                part,
            )
        return found

    def unknown_shares(self, passage_ids: Sequence[int]) -> dict[int, float]:
        """Of some passages, the share of tokens the model does not know; those with none left out."""
        found: dict[int, float] = {}
        for part in _parts(passage_ids):
            marks = ",".join("?" * len(part))
            found.update(
                self.connection.execute(
                    "SELECT id, CAST(unknown AS REAL) / tokens FROM passage "
                    f"WHERE unknown > 0 AND id IN ({marks})",
                    part,
                )
            )
        return found

    def window_vectors(
        self, passage_ids: Sequence[int], dimension: int
    ) -> tuple[list[tuple[int, int, int]], NDArray[np.float32]]:
        """All windows of some passages: (passage id, start, end) each, and vectors (n, d)."""
        windows: list[tuple[int, int, int]] = []
        blobs: list[bytes] = []
        damaged = 0
        for part in _parts(passage_ids):
            marks = ",".join("?" * len(part))
            for passage_id, start, end, data, crc in self.connection.execute(
                "SELECT w.passage_id, w.start, w.end, v.data, v.crc FROM window w "
                f"JOIN vector v ON v.id = w.vector_id WHERE w.passage_id IN ({marks}) "
                "ORDER BY w.passage_id, w.position",
                part,
            ):
                if zlib.crc32(data) != crc:
                    damaged += 1
                    continue
                windows.append((passage_id, start, end))
                blobs.append(data)
        if damaged:
            logger.warning("%d vectors are damaged and were left out", damaged)
        return windows, vectors_from(blobs, dimension)

    def vectors(
        self, model_id: int, dimension: int, after: int = 0
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """A model's vectors with id > `after`, in order, in parts: ids (n,) and vectors (n, d)."""
        cursor = self.connection.execute(
            "SELECT id, data, crc FROM vector WHERE model_id = ? AND id > ? ORDER BY id",
            (model_id, after),
        )
        while rows := cursor.fetchmany(20_000):
            good = [row for row in rows if zlib.crc32(row[1]) == row[2]]
            if len(good) < len(rows):
                logger.warning("%d vectors are damaged and were left out", len(rows) - len(good))
            if good:
                ids = np.array([row[0] for row in good], dtype=np.int64)
                yield ids, vectors_from([row[1] for row in good], dimension)

    def vector_ids_of_keys(self, model_id: int, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Which encoder inputs already have a vector."""
        found: dict[bytes, int] = {}
        for part in _parts(list(keys)):
            marks = ",".join("?" * len(part))
            found.update(
                self.connection.execute(
                    f"SELECT key, id FROM vector WHERE model_id = ? AND key IN ({marks})",
                    (model_id, *part),
                )
            )
        return found

    def has_unused_vectors(self, model_id: int) -> bool:
        """Whether a model has vectors that no window uses."""
        row = self.connection.execute(
            "SELECT 1 FROM vector v WHERE model_id = ? AND NOT EXISTS "
            "(SELECT 1 FROM window w WHERE w.vector_id = v.id) LIMIT 1",
            (model_id,),
        ).fetchone()
        return row is not None

    def deleted(self, kind: str, after: int) -> list[int]:
        """Ids of `passage`s or `vector`s deleted in generations > `after`."""
        rows = self.connection.execute(
            "SELECT id FROM deletion WHERE generation > ? AND kind = ? ORDER BY id", (after, kind)
        )
        return [id for (id,) in rows]

    def passage_texts(self, after: int = 0) -> Iterator[tuple[int, str, str, str, tuple[str, ...]]]:
        """(passage id, text, language, title, heading) of passages with id > `after`, in order."""
        cursor = self.connection.execute(
            "SELECT p.id, p.text, d.language, d.title, p.heading FROM passage p "
            "JOIN document d ON d.id = p.document_id WHERE p.id > ? ORDER BY p.id",
            (after,),
        )
        for id, text, language, title, heading in cursor:
            yield id, text, language, title, _heading(heading)

    def last_passage_id(self) -> int:
        """The highest passage id, 0 where there is none."""
        (last,) = self.connection.execute("SELECT ifnull(max(id), 0) FROM passage").fetchone()
        return int(last)

    def checkpoints(self, model_id: int) -> list[Checkpoint]:
        """A model's catalogued FAISS files, newest first."""
        rows = self.connection.execute(
            "SELECT file, bytes, sha256, vectors, max_vector_id, generation FROM checkpoint "
            "WHERE model_id = ? ORDER BY id DESC",
            (model_id,),
        )
        return [Checkpoint(*row) for row in rows]


def vectors_from(blobs: Sequence[bytes], dimension: int) -> NDArray[np.float32]:
    """Stored vectors (float16) as float32, shape (n, dimension)."""
    flat = np.frombuffer(b"".join(blobs), dtype="<f2")
    return flat.reshape(len(blobs), dimension).astype(np.float32)


def passage_crc(*columns: object) -> int:
    """The checksum of a passage's row: document id, position, start, end, first and last line, page,
    heading (JSON), text."""
    return _crc(columns)


def document_crc(*columns: object) -> int:
    """The checksum of a document's row: path, sha256, title, language, metadata (JSON)."""
    return _crc(columns)


def _crc(columns: tuple[object, ...]) -> int:
    return zlib.crc32("\0".join(map(repr, columns)).encode())


def _lenient(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _parts(values: Sequence[object]) -> Iterator[Sequence[object]]:
    """SQLite takes a limited number of parameters in one statement."""
    for first in range(0, len(values), 900):
        yield list(values[first : first + 900])


def _document(row: tuple[Any, ...]) -> StoredDocument:
    id, root_id, path = row[:3]
    format, encoding, title, metadata, *counts = row[8:]
    return StoredDocument(
        id,
        root_id,
        path,
        FileFacts(*row[3:8]),
        format,
        encoding,
        title,
        _parsed(metadata),
        *counts,
    )


def _heading(column: str) -> tuple[str, ...]:
    """A heading path; empty where it is damaged, which `verify` sees by the checksum."""
    try:
        return tuple(map(str, json.loads(column)))
    except (TypeError, ValueError):
        return ()


def _parsed(metadata: str) -> dict[str, Any]:
    """A document's metadata; none where they are damaged, which `verify` sees by the checksum."""
    try:
        found = json.loads(metadata)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _passage(row: tuple[Any, ...]) -> StoredPassage:
    id, document_id, start, end, first_line, last_line, page, heading = row[:8]
    tokens, unknown, text = row[8:11]
    root_id, path, title, language, metadata, sha256 = row[11:17]
    lines = None if first_line is None else (first_line, last_line)
    return StoredPassage(
        id,
        document_id,
        start,
        end,
        lines,
        page,
        tuple(json.loads(heading)),
        tokens,
        unknown,
        text,
        root_id,
        path,
        title,
        language,
        json.loads(metadata),
        sha256,
    )
