"""Writing: one transaction is the only commit point; everything derived follows from it.

The order of a commit: the transaction (durable when COMMIT returns: WAL, synchronous=FULL), then
tantivy. A crash between the two leaves tantivy a generation behind, and the next writer (or a reader
that may write) catches up from the database. FAISS needs nothing at a commit: its checkpoint is
brought up to date from the database by whoever opens it.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from ragembed.index import schema
from ragembed.index.derive import current_lexical, current_vectors, rebuild_on_disk
from ragembed.index.lexical import LexicalFailure
from ragembed.index.lock import PATIENCE, writer_lock
from ragembed.index.rows import StoredModel
from ragembed.index.store import Store
from ragembed.index.transaction import Transaction
from ragembed.index.vectors import VectorIndex

logger = logging.getLogger(__name__)

# A checkpoint is written again when this share of its vectors is new or dead.
CHECKPOINT_SHARE = 0.1


class Writer:
    """The one writer of an index directory; holds the lock while it is open.

    with Writer(directory) as writer:
        with writer.transaction() as transaction:
            ...
    """

    def __init__(self, directory: Path, patience: float = PATIENCE) -> None:
        """`patience` is how many seconds to wait for the lock."""
        self.directory = directory
        self._patience = patience

    def __enter__(self) -> Writer:
        with ExitStack() as stack:
            stack.enter_context(writer_lock(self.directory, self._patience))
            connection = schema.connect(self.directory, write=True)
            stack.callback(connection.close)
            stack.callback(self._fold_log)
            self.store = Store(self.directory, connection)
            with schema.storage_errors(self.directory):
                self._sweep()
                self.lexical = current_lexical(self.store)
            stack.callback(self._close_lexical)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _fold_log(self) -> None:
        """Move the write-ahead log into the database, so that a copy of the file alone is whole."""
        try:
            self.store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:  # the log stays; nothing is lost by that
            logger.warning("the write-ahead log was not folded in: %s", error)

    def _close_lexical(self) -> None:
        try:
            self.lexical.close()
        except LexicalFailure as error:
            logger.warning("the lexical files will be built again: %s", error)

    def _sweep(self) -> None:
        """Drop what a crash may have left: files that no committed row names."""
        named = {file for (file,) in self.store.connection.execute("SELECT file FROM checkpoint")}
        for path in self.directory.glob("vectors-*"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All or nothing: committed and durable when the block ends, undone when it raises."""
        connection = self.store.connection
        with schema.storage_errors(self.directory):
            connection.execute("BEGIN IMMEDIATE")
            transaction = Transaction(self.store, self.store.generation + 1)
            try:
                yield transaction
                transaction.set("generation", str(transaction.generation))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._follow(transaction)

    def _follow(self, transaction: Transaction) -> None:
        """Bring tantivy up to the generation that was just committed."""
        try:
            self.lexical.apply(
                transaction.generation,
                self.store.last_passage_id(),
                transaction.added,
                transaction.removed,
            )
        except LexicalFailure as error:
            logger.warning("building the lexical files again: %s", error)
            self.lexical = rebuild_on_disk(self.store)

    def sweep_vectors(self, model: StoredModel) -> int:
        """Delete the vectors that no window uses any more; returns how many."""
        if not self.store.has_unused_vectors(model.id):
            return 0
        with self.transaction() as transaction:
            return transaction.delete_unused_vectors(model.id)

    def checkpoint(self, model: StoredModel) -> None:
        """Write the FAISS file anew if enough has changed since the last one, and catalogue it."""
        kept = self.store.checkpoints(model.id)
        with self.store.snapshot():
            generation = self.store.generation
            index, stale = current_vectors(self.store, model)
        bad = [c.file for c in kept if VectorIndex.load(self.directory, c, model.dimension) is None]
        if kept and not bad and stale <= CHECKPOINT_SHARE * max(1, kept[0].vectors):
            return
        compact = index.compacted()
        if not compact.segments:
            if bad:
                with self.transaction() as transaction:
                    transaction.drop_checkpoints(bad)
            return
        name = f"vectors-{uuid.uuid4().hex}.faiss"
        with schema.storage_errors(self.directory):
            size, digest = compact.save(self.directory, name)
            with self.transaction() as transaction:
                transaction.drop_checkpoints(bad)
                transaction.catalogue(
                    model.id, name, size, digest, compact.size, int(compact.ids().max()), generation
                )
            self._sweep()
