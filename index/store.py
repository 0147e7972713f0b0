"""Reading the database: settings, models, roots, documents, and what derived files are built from."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.config import VectorPrecision
from ragembed.errors import IndexDamaged
from ragembed.index import schema
from ragembed.index.checksums import row_crc, vector_crc
from ragembed.index.disk import damage_message, storage_errors
from ragembed.index.lexical import Seal
from ragembed.index.rows import Checkpoint, StoredDocument, StoredModel, StoredRoot

logger = logging.getLogger(__name__)

_DOCUMENT = (
    "SELECT id, root_id, path, sha256, size, mtime_ns, inode, checked_ns, format, encoding, title, "
    "metadata, passages, windows, tokens, unknown FROM document"
)
# What the checksum of a document covers: all of its row but the counts.
DOCUMENT_SAID = (
    "id, root_id, path, sha256, size, mtime_ns, inode, checked_ns, format, encoding, language, title, "
    "metadata, replaced"
)
_MODEL = "SELECT id, name, fingerprint, dimension, precision, crc FROM model"
_UNREAD = "NOT EXISTS (SELECT 1 FROM reading r WHERE r.passage_id = p.id AND r.model_id = ?)"
_PART = 900  # SQLite takes a limited number of parameters in one statement
_VECTORS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class PassageText:
    """What the lexical leg reads of a passage."""

    id: int
    document_id: int
    text: str
    language: str
    title: str
    heading: tuple[str, ...]


class Store:
    """A connection to the database; every method reads. One thread at a time."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self.connection = connection
        self.identity: tuple[int, int] | None = (
            None  # of the database's file, for whoever keeps stores
        )
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
        with storage_errors(self.directory):
            if self.connection.in_transaction:  # inside another snapshot, or a writer's transaction
                yield
                return
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.connection.execute("ROLLBACK")

    def damaged(self, what: str) -> IndexDamaged:
        """The error for a row that is not what was written."""
        return IndexDamaged(damage_message(self.directory, what))

    # -- settings and models -------------------------------------------------------------------

    def setting(self, key: str) -> str | None:
        """A setting's value, None where it was never set; raises IndexDamaged."""
        row = self.connection.execute(
            "SELECT value, crc FROM setting WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        if row_crc(key, row[0]) != row[1]:
            raise self.damaged(f"setting {key!r}")
        return str(row[0])

    def _number(self, key: str) -> int:
        value = self.setting(key)
        if value is None:
            raise self.damaged(f"setting {key!r} is missing")
        return int(value)

    @property
    def generation(self) -> int:
        """Commits so far."""
        return self._number("generation")

    @property
    def floor(self) -> int:
        """Generation from which on the deletion log is complete."""
        return self._number("floor")

    @property
    def history(self) -> str:
        """Which line of generations this is; a restored or copied index goes on with its own."""
        return self.setting("history") or ""

    def lexical_seal(self) -> Seal | None:
        """What tantivy's files were when a writer last left them; None where that is not known."""
        stored = self.setting("lexical")
        if not stored:
            return None
        generation, _, digest = stored.partition(" ")
        return Seal(int(generation), digest)

    def model(self) -> StoredModel | None:
        """The model whose vectors answer; None in an empty index."""
        current = self.setting("model")
        return None if current is None else self._model_of("id", int(current))

    def previous_model(self) -> StoredModel | None:
        """The model that a rollback goes back to; None where there is none."""
        previous = self.setting("previous_model")
        return None if not previous else self._model_of("id", int(previous))

    def model_of(self, fingerprint: str) -> StoredModel | None:
        """A model by its fingerprint; None where the index has none of its vectors."""
        return next((m for m in self.models() if m.fingerprint == fingerprint), None)

    def models(self) -> list[StoredModel]:
        """All models, in the order they came."""
        return [self._checked(row) for row in self.connection.execute(_MODEL + " ORDER BY id")]

    def _model_of(self, column: str, value: int) -> StoredModel:
        row = self.connection.execute(f"{_MODEL} WHERE {column} = ?", (value,)).fetchone()
        if row is None:
            raise self.damaged(f"model {value} is missing")
        return self._checked(row)

    def _checked(self, row: tuple[Any, ...]) -> StoredModel:
        if row_crc(*row[:-1]) != row[-1]:
            raise self.damaged(f"model {row[0]}")
        return StoredModel(*row[:-1])

    # -- documents -----------------------------------------------------------------------------

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
        """All roots, in the order they were added; raises IndexDamaged."""
        found = []
        for *said, crc in self.connection.execute(
            "SELECT id, path, file, scan, crc FROM root ORDER BY id"
        ):
            if row_crc(*said) != crc:
                raise self.damaged(f"root {said[0]}")
            id, path, file, scan = said
            found.append(StoredRoot(id, path, file, json.loads(scan)))
        return found

    def documents(
        self, root_id: int | None = None, *, texts: bool = False, checked: bool = False
    ) -> list[StoredDocument]:
        """Documents by path: of one root, of all (neither argument), or the texts only.

        `checked` compares all checksums, and logs a warning where one does not fit.
        """
        values: tuple[int, ...] = ()
        if texts:
            which = " WHERE root_id IS NULL ORDER BY path"
        elif root_id is None:
            which = " ORDER BY root_id, path"
        else:
            which, values = " WHERE root_id = ? ORDER BY path", (root_id,)
        try:
            # Decoding text by a function of ours costs a call for each column of each row.
            self.connection.text_factory = str
            rows = self.connection.execute(_DOCUMENT + which, values).fetchall()
        except sqlite3.OperationalError:  # bytes that are not UTF-8, which checksums will tell
            self.connection.text_factory = _lenient
            rows = self.connection.execute(_DOCUMENT + which, values).fetchall()
        finally:
            self.connection.text_factory = _lenient
        if not all(map(_has_sound_types, rows)):
            raise self.damaged("a row of the table document")
        if checked:
            self._check_documents()
        return list(map(StoredDocument._make, rows))

    def _check_documents(self) -> None:
        """Say how many documents' rows are not what was written."""
        rows = self.connection.execute(f"SELECT {DOCUMENT_SAID}, crc FROM document")
        if damaged := sum(row_crc(*said) != crc for *said, crc in rows):
            logger.warning(
                "the rows of %d documents are damaged; `ragembed verify` says more", damaged
            )

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

    # -- what derived files are built from -----------------------------------------------------

    def vectors(
        self, model: StoredModel, after: int = 0
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """A model's vectors with id > `after`, in order, in parts: ids (n,) and vectors (n, d).

        A row that is not what was written is left out and logged.
        """
        cursor = self.connection.execute(
            "SELECT id, model_id, key, data, crc FROM vector WHERE model_id = ? AND id > ? ORDER BY id",
            (model.id, after),
        )
        while rows := cursor.fetchmany(_VECTORS_AT_ONCE):
            good = [row for row in rows if vector_crc(*row[:-1]) == row[-1]]
            if len(good) < len(rows):
                logger.warning("%d vectors are damaged and were left out", len(rows) - len(good))
            if good:
                ids = np.array([row[0] for row in good], dtype=np.int64)
                yield ids, vectors_from([row[3] for row in good], model)

    def vector_count(self, model_id: int, after: int = 0) -> int:
        """How many vectors a model has with id > `after`."""
        (count,) = self.connection.execute(
            "SELECT count(*) FROM vector WHERE model_id = ? AND id > ?", (model_id, after)
        ).fetchone()
        return int(count)

    def vector_ids_of_keys(self, model_id: int, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Which encoder inputs already have a vector."""
        found: dict[bytes, int] = {}
        for part in parts(list(keys)):
            marks = ",".join("?" * len(part))
            found.update(
                self.connection.execute(
                    f"SELECT key, id FROM vector WHERE model_id = ? AND key IN ({marks})",
                    (model_id, *part),
                )
            )
        return found

    def unread_passages(self, model_id: int) -> int:
        """How many passages a model has not read."""
        (count,) = self.connection.execute(
            f"SELECT count(*) FROM passage p WHERE {_UNREAD}", (model_id,)
        ).fetchone()
        return int(count)

    def unread_passage_ids(self, model_id: int, after: int, count: int) -> list[int]:
        """The next ids > `after` of passages that a model has not read."""
        rows = self.connection.execute(
            f"SELECT id FROM passage p WHERE {_UNREAD} AND id > ? ORDER BY id LIMIT ?",
            (model_id, after, count),
        )
        return [id for (id,) in rows]

    def deleted(self, kind: str, after: int) -> list[int]:
        """Ids of `passage`s or `vector`s deleted in generations > `after`."""
        rows = self.connection.execute(
            "SELECT id FROM deletion WHERE generation > ? AND kind = ? ORDER BY id", (after, kind)
        )
        return [id for (id,) in rows]

    def passage_texts(self, after: int = 0) -> Iterator[PassageText]:
        """Passages with id > `after`, in order."""
        cursor = self.connection.execute(
            "SELECT p.id, p.document_id, p.text, d.language, d.title, p.heading FROM passage p "
            "JOIN document d ON d.id = p.document_id WHERE p.id > ? ORDER BY p.id",
            (after,),
        )
        for id, document_id, text, language, title, heading in cursor:
            yield PassageText(id, document_id, text, language, title, heading_of(heading))

    def last_id(self, table: str) -> int:
        """The highest id that a table ever gave, 0 where there is none."""
        row = self.connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)
        ).fetchone()
        (highest,) = self.connection.execute(f"SELECT ifnull(max(id), 0) FROM {table}").fetchone()
        return max(int(highest), int(row[0]) if row else 0)

    def checkpoints(self, model_id: int) -> list[Checkpoint]:
        """A model's catalogued FAISS files, newest first; a damaged row is left out and logged."""
        found = []
        for id, model, *said, crc in self.connection.execute(
            "SELECT id, model_id, file, bytes, sha256, vectors, max_vector_id, generation, kind, "
            "trained, probes, crc FROM checkpoint WHERE model_id = ? ORDER BY id DESC",
            (model_id,),
        ):
            if row_crc(id, model, *said) != crc:
                logger.warning("the catalogue's row of %s is damaged and is not used", said[0])
                continue
            found.append(Checkpoint(*said))
        return found


def vectors_from(blobs: Sequence[bytes], model: StoredModel) -> NDArray[np.float32]:
    """Stored vectors as float32, shape (n, dimension)."""
    flat = np.frombuffer(b"".join(blobs), dtype=stored_dtype(model.precision))
    return flat.reshape(len(blobs), model.dimension).astype(np.float32)


def stored_dtype(precision: VectorPrecision) -> str:
    """NumPy's name of how vectors are stored: little-endian."""
    return "<f2" if precision == "float16" else "<f4"


def parts(values: Sequence[object]) -> Iterator[Sequence[object]]:
    """Values in parts that fit into one statement's parameters."""
    for first in range(0, len(values), _PART):
        yield list(values[first : first + _PART])


def heading_of(column: str) -> tuple[str, ...]:
    """A heading path; empty where it is damaged, which its row's checksum says."""
    try:
        return tuple(map(str, json.loads(column)))
    except (TypeError, ValueError):
        return ()


_TYPES = (bytes, bytes, int, int, int, int, str, str, str, str, int, int, int, int)


def _has_sound_types(row: tuple[Any, ...]) -> bool:
    """Whether a row of `_DOCUMENT` has columns of the right types; a zeroed page has none."""
    return tuple(map(type, row[2:])) == _TYPES


def _lenient(data: bytes) -> str:
    return data.decode("utf-8", "replace")
