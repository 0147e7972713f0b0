"""What one transaction can write: rows only; the files that derive from them follow the commit."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.errors import InvalidInput
from ragembed.index.derive import passage_terms
from ragembed.index.lexical import PassageTerms
from ragembed.index.rows import DocumentRow, FileFacts, PassageRow, StoredModel
from ragembed.index.store import Store, document_crc, passage_crc
from ragembed.index.vectors import check_vectors


class Transaction:
    """What can be written; nothing is visible to others before the block of `transaction` ends."""

    def __init__(self, store: Store, generation: int) -> None:
        self._store = store
        self._connection = store.connection
        self.generation = generation
        self.added: list[PassageTerms] = []
        self.removed: list[int] = []

    def set(self, key: str, value: str) -> None:
        """Store a setting."""
        self._connection.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (key, value))

    def put_model(self, name: str, fingerprint: str, dimension: int) -> StoredModel:
        """Make a model the one whose vectors answer."""
        self._connection.execute(
            "INSERT OR IGNORE INTO model (name, fingerprint, dimension) VALUES (?, ?, ?)",
            (name, fingerprint, dimension),
        )
        (id,) = self._connection.execute(
            "SELECT id FROM model WHERE fingerprint = ?", (fingerprint,)
        ).fetchone()
        self.set("model", str(id))
        return StoredModel(id, name, fingerprint, dimension)

    def put_root(self, path: bytes, file: bytes, scan: Mapping[str, Any]) -> int:
        """Add a root, or give a known one new scan settings; returns its id."""
        self._connection.execute(
            "INSERT INTO root (path, file, scan) VALUES (?, ?, ?) "
            "ON CONFLICT (path, file) DO UPDATE SET scan = excluded.scan",
            (path, file, json.dumps(scan)),
        )
        (id,) = self._connection.execute(
            "SELECT id FROM root WHERE path = ? AND file = ?", (path, file)
        ).fetchone()
        return int(id)

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

    def put_vectors(
        self, model: StoredModel, keys: Sequence[bytes], vectors: NDArray[np.float32]
    ) -> dict[bytes, int]:
        """Store unit vectors (n, d) under the keys (n,) of their inputs; returns their ids."""
        array = check_vectors(vectors, model.dimension)
        if len(keys) != len(array):
            raise InvalidInput(f"{len(keys)} keys came with {len(array)} vectors")
        ids = {}
        for key, vector in zip(keys, array.astype("<f2"), strict=True):
            data = vector.tobytes()
            cursor = self._connection.execute(
                "INSERT INTO vector (model_id, key, data, crc) VALUES (?, ?, ?, ?)",
                (model.id, key, data, zlib.crc32(data)),
            )
            ids[key] = int(cursor.lastrowid or 0)
        return ids

    def delete_unused_vectors(self, model_id: int) -> int:
        """Delete the vectors that no window uses; returns how many."""
        condition = "model_id = ? AND id NOT IN (SELECT vector_id FROM window)"
        self._connection.execute(
            f"INSERT INTO deletion SELECT ?, 'vector', id FROM vector WHERE {condition}",
            (self.generation, model_id),
        )
        return self._connection.execute(
            f"DELETE FROM vector WHERE {condition}", (model_id,)
        ).rowcount

    def put_document(
        self, row: DocumentRow, vector_ids: Mapping[bytes, int], replaces: int | None = None
    ) -> int:
        """Store a document with its passages and windows; returns its id.

        Args:
            row: the document.
            vector_ids: the vector of every window's key.
            replaces: id of the document whose place it takes; the id is kept.
        """
        if replaces is not None:
            self._delete_passages(replaces)
        values = (
            row.root_id, row.path, row.facts.sha256, row.facts.size, row.facts.mtime_ns,
            row.facts.inode, row.facts.checked_ns, row.format, row.encoding, row.language, row.title,
            json.dumps(row.metadata), row.replaced, len(row.passages),
            sum(len(p.windows) for p in row.passages),
            sum(p.tokens for p in row.passages), sum(p.unknown for p in row.passages),
            document_crc(
                row.path, row.facts.sha256, row.title, row.language, json.dumps(row.metadata)
            ),
        )  # fmt: skip
        columns = (
            "root_id, path, sha256, size, mtime_ns, inode, checked_ns, format, encoding, language, "
            "title, metadata, replaced, passages, windows, tokens, unknown, crc"
        )
        marks = ", ".join("?" * len(values))
        if replaces is None:
            cursor = self._connection.execute(
                f"INSERT INTO document ({columns}) VALUES ({marks})", values
            )
            document_id = int(cursor.lastrowid or 0)
        else:
            document_id = replaces
            self._connection.execute(
                f"UPDATE document SET ({columns}) = ({marks}) WHERE id = ?", (*values, document_id)
            )
        self._connection.execute(
            "INSERT OR REPLACE INTO source VALUES (?, ?)",
            (document_id, zlib.compress(row.text.encode(), 6)),
        )
        for position, passage in enumerate(row.passages):
            self._put_passage(document_id, position, passage, row, vector_ids)
        return document_id

    def _put_passage(
        self,
        document_id: int,
        position: int,
        passage: PassageRow,
        row: DocumentRow,
        vector_ids: Mapping[bytes, int],
    ) -> None:
        first, last = passage.lines or (None, None)
        heading = json.dumps(passage.heading)
        crc = passage_crc(
            document_id, position, passage.start, passage.end, first, last, passage.page, heading,
            passage.text,
        )  # fmt: skip
        cursor = self._connection.execute(
            "INSERT INTO passage (document_id, position, start, end, first_line, last_line, page, "
            "heading, tokens, unknown, text, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                document_id, position, passage.start, passage.end, first, last, passage.page,
                heading, passage.tokens, passage.unknown, passage.text, crc,
            ),
        )  # fmt: skip
        passage_id = int(cursor.lastrowid or 0)
        self._connection.executemany(
            "INSERT INTO window VALUES (?, ?, ?, ?, ?)",
            [
                (passage_id, n, window.start, window.end, vector_ids[window.key])
                for n, window in enumerate(passage.windows)
            ],
        )
        self.added.append(
            passage_terms(passage_id, passage.text, row.language, row.title, passage.heading)
        )

    def _delete_passages(self, document_id: int) -> None:
        rows = self._connection.execute(
            "SELECT id FROM passage WHERE document_id = ?", (document_id,)
        )
        ids = [id for (id,) in rows]
        self._connection.executemany(
            "INSERT INTO deletion VALUES (?, 'passage', ?)", [(self.generation, id) for id in ids]
        )
        self._connection.execute("DELETE FROM passage WHERE document_id = ?", (document_id,))
        self.removed += ids

    def delete_document(self, document_id: int) -> None:
        """Remove a document with all that hangs on it, but for vectors that others may use."""
        self._delete_passages(document_id)
        self._connection.execute("DELETE FROM document WHERE id = ?", (document_id,))

    def move_document(self, document_id: int, root_id: int, path: bytes, facts: FileFacts) -> None:
        """The same content under another path."""
        self._connection.execute(
            "UPDATE document SET root_id = ?, path = ? WHERE id = ?", (root_id, path, document_id)
        )
        row = self._connection.execute(
            "SELECT path, sha256, title, language, metadata FROM document WHERE id = ?",
            (document_id,),
        ).fetchone()
        self._connection.execute(
            "UPDATE document SET crc = ? WHERE id = ?", (document_crc(*row), document_id)
        )
        self.touch_document(document_id, facts)

    def touch_document(self, document_id: int, facts: FileFacts) -> None:
        """The same content, looked at again."""
        self._connection.execute(
            "UPDATE document SET size = ?, mtime_ns = ?, inode = ?, checked_ns = ? WHERE id = ?",
            (facts.size, facts.mtime_ns, facts.inode, facts.checked_ns, document_id),
        )

    def drop_checkpoints(self, files: Sequence[str]) -> None:
        """Strike FAISS files that are not what was written from the catalogue."""
        self._connection.executemany(
            "DELETE FROM checkpoint WHERE file = ?", [(file,) for file in files]
        )

    def catalogue(
        self,
        model_id: int,
        file: str,
        size: int,
        sha256: bytes,
        vectors: int,
        max_vector_id: int,
        generation: int,
    ) -> None:
        """Name a FAISS file that is safely on disk; the two newest are kept."""
        self._connection.execute(
            "INSERT INTO checkpoint "
            "(model_id, file, bytes, sha256, vectors, max_vector_id, generation) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (model_id, file, size, sha256, vectors, max_vector_id, generation),
        )
        self._connection.execute(
            "DELETE FROM checkpoint WHERE model_id = ? AND id NOT IN "
            "(SELECT id FROM checkpoint WHERE model_id = ? ORDER BY id DESC LIMIT 2)",
            (model_id, model_id),
        )
        # Nobody needs deletions that every kept checkpoint already reflects.
        (oldest,) = self._connection.execute("SELECT min(generation) FROM checkpoint").fetchone()
        self._connection.execute("DELETE FROM deletion WHERE generation <= ?", (oldest,))
        self.set("floor", str(oldest))
