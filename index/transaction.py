"""What one transaction can write: rows only; the files that derive from them follow the commit."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.config import VectorPrecision
from ragembed.errors import InvalidInput
from ragembed.index.checksums import reading_crc, row_crc, vector_crc, window_crc
from ragembed.index.derive import passage_terms
from ragembed.index.lexical import PassageTerms
from ragembed.index.rows import (
    Checkpoint,
    DocumentRow,
    FileFacts,
    PassageReading,
    StoredModel,
)
from ragembed.index.store import DOCUMENT_SAID, PassageText, Store, stored_dtype
from ragembed.index.vectors import check_vectors

_KEPT_CHECKPOINTS = 2

_FIGURES = """UPDATE document SET
  windows = (SELECT count(*) FROM passage p JOIN window w ON w.passage_id = p.id
             WHERE p.document_id = document.id AND w.model_id = ?1),
  tokens = (SELECT ifnull(sum(r.tokens), 0) FROM passage p JOIN reading r ON r.passage_id = p.id
            WHERE p.document_id = document.id AND r.model_id = ?1),
  unknown = (SELECT ifnull(sum(r.unknown), 0) FROM passage p JOIN reading r ON r.passage_id = p.id
             WHERE p.document_id = document.id AND r.model_id = ?1)"""


class Transaction:
    """What can be written; nothing is visible to others before the block of `transaction` ends."""

    def __init__(self, store: Store, generation: int) -> None:
        self._store = store
        self._connection = store.connection
        self._next_ids: dict[str, int] = {}
        self.generation = generation
        self.added: list[PassageTerms] = []
        self.removed: list[int] = []

    def _new_id(self, table: str) -> int:
        """The next id of a table. Known before the row is written, because its checksum covers it."""
        if table not in self._next_ids:
            self._next_ids[table] = self._store.last_id(table) + 1
        id = self._next_ids[table]
        self._next_ids[table] += 1
        return id

    # -- settings, models, roots ---------------------------------------------------------------

    def set(self, key: str, value: str) -> None:
        """Store a setting."""
        self._connection.execute(
            "INSERT OR REPLACE INTO setting VALUES (?, ?, ?)", (key, value, row_crc(key, value))
        )

    def unset(self, key: str) -> None:
        """Forget a setting."""
        self._connection.execute("DELETE FROM setting WHERE key = ?", (key,))

    def put_model(
        self, name: str, fingerprint: str, dimension: int, precision: VectorPrecision = "float16"
    ) -> StoredModel:
        """A model by its fingerprint, made known if it is new."""
        known = self._store.model_of(fingerprint)
        if known is not None:
            return known
        row = (self._new_id("model"), name, fingerprint, dimension, precision)
        self._connection.execute(
            "INSERT INTO model VALUES (?, ?, ?, ?, ?, ?)", (*row, row_crc(*row))
        )
        return StoredModel(*row)

    def use_model(self, model: StoredModel) -> None:
        """Make a model the one whose vectors answer; the one before it can be gone back to."""
        before = self._store.setting("model")
        if before == str(model.id):
            return
        self.set("model", str(model.id))
        self.unset("next_model")
        if before is not None:
            self.set("previous_model", before)
            self._connection.execute(_FIGURES, (model.id,))

    def delete_model(self, model: StoredModel) -> None:
        """Drop a model that is not in use with all its vectors."""
        if self._store.setting("previous_model") == str(model.id):
            self.unset("previous_model")
        for table in ("window", "reading", "checkpoint"):
            self._connection.execute(f"DELETE FROM {table} WHERE model_id = ?", (model.id,))
        self._connection.execute("DELETE FROM vector WHERE model_id = ?", (model.id,))
        self._connection.execute("DELETE FROM model WHERE id = ?", (model.id,))

    def put_root(self, path: bytes, file: bytes, scan: Mapping[str, Any]) -> int:
        """Add a root, or give a known one new scan settings; returns its id."""
        known = self._connection.execute(
            "SELECT id FROM root WHERE path = ? AND file = ?", (path, file)
        ).fetchone()
        id = self._new_id("root") if known is None else int(known[0])
        self._write_root(id, path, file, json.dumps(scan))
        return id

    def move_root(self, root_id: int, path: bytes) -> None:
        """A root whose folder is somewhere else now."""
        file, scan = self._connection.execute(
            "SELECT file, scan FROM root WHERE id = ?", (root_id,)
        ).fetchone()
        self._write_root(root_id, path, file, scan)

    def _write_root(self, id: int, path: bytes, file: bytes, scan: str) -> None:
        self._connection.execute(
            "INSERT INTO root VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO UPDATE SET "
            "path = ?2, file = ?3, scan = ?4, crc = ?5",
            (id, path, file, scan, row_crc(id, path, file, scan)),
        )

    def delete_root(self, root_id: int) -> None:
        """Forget a root whose documents are gone."""
        self._connection.execute("DELETE FROM skipped WHERE root_id = ?", (root_id,))
        self._connection.execute("DELETE FROM root WHERE id = ?", (root_id,))

    def put_skipped(
        self, root_id: int, subtree: bytes, skipped: Sequence[tuple[bytes, str, str]]
    ) -> None:
        """Replace what the last sync of a root, or of a part of it, left out."""
        self._connection.execute(
            "DELETE FROM skipped WHERE root_id = ? AND (path = ? OR substr(path, 1, ?) = ?)",
            (
                root_id,
                subtree,
                len(subtree) + 1 if subtree else 0,
                subtree + b"/" if subtree else b"",
            ),
        )
        self._connection.executemany(
            "INSERT INTO skipped VALUES (?, ?, ?, ?)", [(root_id, *row) for row in skipped]
        )

    # -- vectors -------------------------------------------------------------------------------

    def put_vectors(
        self,
        model: StoredModel,
        keys: Sequence[bytes],
        vectors: NDArray[np.float32],
        *,
        ahead: bool = False,
    ) -> dict[bytes, int]:
        """Store unit vectors (n, d) under the keys (n,) of their inputs; returns their ids.

        `ahead`: their windows come in a later transaction, if nothing happens before.
        """
        array = check_vectors(vectors, model.dimension)
        if len(keys) != len(array):
            raise InvalidInput(f"{len(keys)} keys came with {len(array)} vectors")
        rows = []
        for key, vector in zip(keys, array.astype(stored_dtype(model.precision)), strict=True):
            id, data = self._new_id("vector"), vector.tobytes()
            rows.append((id, model.id, key, data, vector_crc(id, model.id, key, data)))
        self._connection.executemany("INSERT INTO vector VALUES (?, ?, ?, ?, ?)", rows)
        if ahead:
            self._stray(row[0] for row in rows)
        return {row[2]: row[0] for row in rows}

    def _stray(self, vector_ids: Iterable[int]) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO stray VALUES (?)", [(id,) for id in vector_ids]
        )

    def sweep_vectors(self) -> int:
        """Delete the vectors that no window uses any more; returns how many."""
        unused = (
            "id IN (SELECT vector_id FROM stray) AND NOT EXISTS "
            "(SELECT 1 FROM window WHERE vector_id = vector.id)"
        )
        self._connection.execute(
            f"INSERT INTO deletion SELECT ?, 'vector', id FROM vector WHERE {unused}",
            (self.generation,),
        )
        swept = self._connection.execute(f"DELETE FROM vector WHERE {unused}").rowcount
        self._connection.execute("DELETE FROM stray")
        return swept

    # -- documents -----------------------------------------------------------------------------

    def put_document(
        self,
        row: DocumentRow,
        model: StoredModel,
        vector_ids: Mapping[bytes, int],
        replaces: int | None = None,
    ) -> int:
        """Store a document with its passages and windows; returns its id.

        Args:
            row: the document.
            model: whose windows these are.
            vector_ids: the vector of every window's key.
            replaces: id of the document whose place it takes; the id is kept.
        """
        if replaces is not None:
            self._delete_passages(replaces)
        id = self._new_id("document") if replaces is None else replaces
        metadata = json.dumps(row.metadata)
        values: tuple[object, ...] = (
            id, row.root_id, row.path, row.facts.sha256, row.facts.size, row.facts.mtime_ns,
            row.facts.inode, row.facts.checked_ns, row.format, row.encoding, row.language, row.title,
            metadata, row.replaced, len(row.passages), sum(len(p.windows) for p in row.passages),
            sum(p.tokens for p in row.passages), sum(p.unknown for p in row.passages),
        )  # fmt: skip
        values = (*values, row_crc(*values[:14]))
        columns = (
            "id, root_id, path, sha256, size, mtime_ns, inode, checked_ns, format, encoding, language, "
            "title, metadata, replaced, passages, windows, tokens, unknown, crc"
        )
        marks = ", ".join("?" * len(values))
        if replaces is None:
            self._connection.execute(f"INSERT INTO document ({columns}) VALUES ({marks})", values)
        else:
            self._connection.execute(
                f"UPDATE document SET ({columns}) = ({marks}) WHERE id = ?", (*values, id)
            )
        self._connection.execute(
            "INSERT OR REPLACE INTO source VALUES (?, ?)", (id, zlib.compress(row.text.encode(), 6))
        )
        self._put_passages(id, row, model, vector_ids)
        return id

    def _put_passages(
        self,
        document_id: int,
        row: DocumentRow,
        model: StoredModel,
        vector_ids: Mapping[bytes, int],
    ) -> None:
        rows: list[tuple[object, ...]] = []
        readings = []
        for position, passage in enumerate(row.passages):
            id = self._new_id("passage")
            first, last = passage.lines or (None, None)
            said = (
                id, document_id, position, passage.start, passage.end, first, last, passage.page,
                json.dumps(passage.heading), passage.text,
            )  # fmt: skip
            rows.append((*said, row_crc(*said)))
            readings.append(PassageReading(id, passage.tokens, passage.unknown, passage.windows))
            self.added.append(
                passage_terms(
                    PassageText(
                        id, document_id, passage.text, row.language, row.title, passage.heading
                    )
                )
            )
        self._connection.executemany(
            "INSERT INTO passage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
        )
        self.put_readings(model, readings, vector_ids)

    def put_readings(
        self,
        model: StoredModel,
        readings: Sequence[PassageReading],
        vector_ids: Mapping[bytes, int],
    ) -> None:
        """Store how a model reads passages: its token counts and windows."""
        self._connection.executemany(
            "INSERT INTO reading VALUES (?, ?, ?, ?, ?)",
            [
                (
                    reading.passage_id, model.id, reading.tokens, reading.unknown,
                    reading_crc(reading.passage_id, model.id, reading.tokens, reading.unknown),
                )
                for reading in readings
            ],
        )  # fmt: skip
        windows = [
            (reading.passage_id, model.id, n, window.start, window.end, vector_ids[window.key])
            for reading in readings
            for n, window in enumerate(reading.windows)
        ]
        self._connection.executemany(
            "INSERT INTO window VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*said, window_crc(*said)) for said in windows],
        )

    def _delete_passages(self, document_id: int) -> None:
        rows = self._connection.execute(
            "SELECT id FROM passage WHERE document_id = ?", (document_id,)
        )
        ids = [id for (id,) in rows]
        self._connection.execute(
            "INSERT OR IGNORE INTO stray SELECT w.vector_id FROM passage p "
            "JOIN window w ON w.passage_id = p.id WHERE p.document_id = ?",
            (document_id,),
        )
        self._connection.executemany(
            "INSERT INTO deletion VALUES (?, 'passage', ?)", [(self.generation, id) for id in ids]
        )
        self._connection.execute("DELETE FROM passage WHERE document_id = ?", (document_id,))
        self.removed += ids

    def delete_document(self, document_id: int) -> None:
        """Remove a document with all that hangs on it, but for vectors that others may use."""
        self._delete_passages(document_id)
        self._connection.execute("DELETE FROM document WHERE id = ?", (document_id,))

    def move_document(
        self, document_id: int, root_id: int | None, path: bytes, facts: FileFacts
    ) -> None:
        """The same content under another path."""
        self._connection.execute(
            "UPDATE document SET root_id = ?, path = ? WHERE id = ?", (root_id, path, document_id)
        )
        self.touch_document(document_id, facts)

    def touch_document(self, document_id: int, facts: FileFacts) -> None:
        """The same content, looked at again."""
        self._connection.execute(
            "UPDATE document SET size = ?, mtime_ns = ?, inode = ?, checked_ns = ? WHERE id = ?",
            (facts.size, facts.mtime_ns, facts.inode, facts.checked_ns, document_id),
        )
        said = self._connection.execute(
            f"SELECT {DOCUMENT_SAID} FROM document WHERE id = ?", (document_id,)
        ).fetchone()
        self._connection.execute(
            "UPDATE document SET crc = ? WHERE id = ?", (row_crc(*said), document_id)
        )

    # -- the catalogue of FAISS files ----------------------------------------------------------

    def catalogue(self, model_id: int, checkpoint: Checkpoint) -> None:
        """Name a FAISS file that is safely on disk; the two newest of a model are kept."""
        said = (
            self._new_id("checkpoint"), model_id, checkpoint.file, checkpoint.size,
            checkpoint.sha256, checkpoint.vectors, checkpoint.max_vector_id, checkpoint.generation,
            checkpoint.kind, checkpoint.trained, checkpoint.probes,
        )  # fmt: skip
        self._connection.execute(
            "INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*said, row_crc(*said)),
        )
        self._connection.execute(
            "DELETE FROM checkpoint WHERE model_id = ? AND id NOT IN "
            "(SELECT id FROM checkpoint WHERE model_id = ? ORDER BY id DESC LIMIT ?)",
            (model_id, model_id, _KEPT_CHECKPOINTS),
        )
        # Nobody needs deletions that every kept checkpoint of the model in use reflects.
        (oldest,) = self._connection.execute(
            "SELECT min(generation) FROM checkpoint WHERE model_id = ?", (model_id,)
        ).fetchone()
        if self._store.setting("model") == str(model_id):
            self._connection.execute("DELETE FROM deletion WHERE generation <= ?", (oldest,))
            self.set("floor", str(max(int(oldest), self._store.floor)))

    def drop_checkpoints(self, files: Sequence[str]) -> None:
        """Strike FAISS files from the catalogue."""
        self._connection.executemany(
            "DELETE FROM checkpoint WHERE file = ?", [(file,) for file in files]
        )
