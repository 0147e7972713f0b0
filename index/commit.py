"""Writing: one transaction is the only commit point; everything derived follows from it.

The order of a commit: the transaction (durable when COMMIT returns: WAL, synchronous=FULL), then
tantivy. A crash between the two leaves tantivy a generation behind, and the next writer (or a reader
that may write) catches up from the database. FAISS needs nothing at a commit: its checkpoint is
brought up to date from the database by whoever opens it.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from ragembed.errors import StorageError
from ragembed.index import ann, checkpoint, schema
from ragembed.index.checksums import row_crc
from ragembed.index.derive import current_lexical, rebuild_on_disk
from ragembed.index.disk import storage_errors, sync_directory
from ragembed.index.lexical import LexicalFailure, Seal
from ragembed.index.lock import PATIENCE, writer_lock
from ragembed.index.migrate import migrate
from ragembed.index.rows import Checkpoint, StoredModel
from ragembed.index.store import Store
from ragembed.index.transaction import Transaction

logger = logging.getLogger(__name__)

# A checkpoint is written again when this share of its vectors is new or dead.
CHECKPOINT_SHARE = 0.1
# At the end of a run the database is rewritten without its free pages when they are this share of it,
# and worth the trouble.
FREE_SHARE = 0.3
FREE_BYTES = 16 << 20
_FOLDING_PATIENCE_MS = 100
_PURGE_PATIENCE = 5.0  # seconds that a purge waits for readers of older commits


class Writer:
    """The one writer of an index directory; holds the lock while it is open.

    with Writer(directory) as writer:
        with writer.transaction() as transaction:
            ...
        writer.finish()
    """

    def __init__(self, directory: Path, patience: float = PATIENCE) -> None:
        """`patience` is how many seconds to wait for the lock."""
        self.directory = directory
        self._patience = patience

    def __enter__(self) -> Writer:
        with ExitStack() as stack:
            stack.enter_context(writer_lock(self.directory, self._patience))
            connection = schema.connect(self.directory, write=True, migrate=True)
            stack.callback(connection.close)
            self.store = Store(self.directory, connection)
            with storage_errors(self.directory):
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                migrate(connection, int(version))
                stack.callback(self._fold_log)
                self.sweep_files()
                self.lexical = current_lexical(self.store)
            stack.callback(self._close_lexical)
            self._resume_purge()
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
            # A reader of an older commit keeps the log in use; it is folded in another time.
            self.store.connection.execute(f"PRAGMA busy_timeout = {_FOLDING_PATIENCE_MS}")
            self.store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:  # the log stays; nothing is lost by that
            logger.warning("the write-ahead log was not folded in: %s", error)

    def _close_lexical(self) -> None:
        try:
            self.lexical.close()
            self._seal(self.lexical.seal())
        except (LexicalFailure, OSError) as error:
            logger.warning("the lexical files will be built again: %s", error)
        except sqlite3.Error as error:  # they are found to be whole by their checksums alone
            logger.warning("what the lexical files are was not written down: %s", error)

    def _seal(self, seal: Seal) -> None:
        """Write down what tantivy's files are; no commit of its own, for nothing has changed."""
        if self.store.lexical_seal() != seal:
            value = f"{seal.generation} {seal.digest}"
            self.store.connection.execute(
                "INSERT OR REPLACE INTO setting VALUES ('lexical', ?, ?)",
                (value, row_crc("lexical", value)),
            )

    def sweep_files(self) -> None:
        """Drop what a crash may have left: files that no committed row names."""
        with storage_errors(self.directory):
            named = set(self._catalogued())
            for path in self.directory.glob("vectors-*"):
                if path.name not in named:
                    path.unlink(missing_ok=True)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All or nothing: committed and durable when the block ends, undone when it raises."""
        connection = self.store.connection
        with storage_errors(self.directory):
            connection.execute("BEGIN IMMEDIATE")
            transaction = Transaction(self.store, self.store.generation + 1)
            try:
                yield transaction
                transaction.set("generation", str(transaction.generation))
                transaction.set("committed_ns", str(time.time_ns()))
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
                self.store.last_id("passage"),
                transaction.added,
                transaction.removed,
            )
        except LexicalFailure as error:
            logger.warning("building the lexical files again: %s", error)
            self.lexical = rebuild_on_disk(self.store)

    # -- the end of a run ----------------------------------------------------------------------

    def finish(self) -> None:
        """After the last change of a run: drop unused vectors, bring the FAISS file up to date, give
        back free pages. Cheap when nothing has changed."""
        model = self.store.model()
        if model is None:
            return
        self.sweep_vectors()
        self.checkpoint(model)
        free, whole = page_bytes(self.store)
        if free >= FREE_BYTES and free >= FREE_SHARE * whole:
            try:
                self.vacuum()
            except StorageError as error:  # everything is committed; the space can wait
                logger.warning("free pages were not given back: %s", error)

    def sweep_vectors(self) -> int:
        """Delete the vectors that no window uses any more; returns how many."""
        if self.store.connection.execute("SELECT 1 FROM stray LIMIT 1").fetchone() is None:
            return 0
        with self.transaction() as transaction:
            return transaction.sweep_vectors()

    def checkpoint(self, model: StoredModel, *, force: bool = False) -> None:
        """Write the FAISS file anew if enough has changed since the last one, and catalogue it.

        Files that are missing or cut are struck from the catalogue. `force` writes one in any case,
        and reads the others through before it leaves them there.
        """
        kept = self.store.checkpoints(model.id)
        there = [known for known in kept if self._good(known, model, thorough=force)]
        bad = [known.file for known in kept if known not in there]
        if (
            there
            and not force
            and self._stale(model, there[0]) <= CHECKPOINT_SHARE * max(1, there[0].vectors)
        ):
            if bad:
                with self.transaction() as transaction:
                    transaction.drop_checkpoints(bad)
                self.sweep_files()
            return
        self._write_checkpoint(model, there, bad)

    def compact_checkpoints(self, model: StoredModel) -> None:
        """Leave one FAISS file of a model, without dead vectors."""
        kept = self.store.checkpoints(model.id)
        if not kept or self._stale(model, kept[0]) or not self._good(kept[0], model, thorough=True):
            self.checkpoint(model, force=True)
        older = [known.file for known in self.store.checkpoints(model.id)[1:]]
        if older:
            with self.transaction() as transaction:
                transaction.drop_checkpoints(older)
        self.sweep_files()

    def _good(self, known: Checkpoint, model: StoredModel, *, thorough: bool) -> bool:
        if thorough:
            return checkpoint.load(self.directory, known, model) is not None
        return checkpoint.is_there(self.directory, known)

    def _stale(self, model: StoredModel, known: Checkpoint) -> int:
        """How many vectors have come and gone since a checkpoint."""
        if known.generation < self.store.floor:
            return known.vectors
        gone = [
            id for id in self.store.deleted("vector", known.generation) if id <= known.max_vector_id
        ]
        return self.store.vector_count(model.id, known.max_vector_id) + len(gone)

    def _write_checkpoint(
        self, model: StoredModel, there: list[Checkpoint], bad: list[str]
    ) -> None:
        with self.store.snapshot():
            generation = self.store.generation
            count = self.store.vector_count(model.id)
            if count:
                built = self._build(model, count, there)
        if not count:
            if there or bad:
                with self.transaction() as transaction:
                    transaction.drop_checkpoints([*bad, *(known.file for known in there)])
                self.sweep_files()
            return
        name = f"vectors-{uuid.uuid4().hex}.faiss"
        segment = built.segment
        with storage_errors(self.directory):
            size, digest = checkpoint.save(segment.index, self.directory, name)
            new = Checkpoint(
                name, size, digest, segment.size, segment.last_id, generation, built.kind,
                built.trained, segment.probes,
            )  # fmt: skip
            with self.transaction() as transaction:
                transaction.drop_checkpoints(bad)
                transaction.catalogue(model.id, new)
            self.sweep_files()

    def _build(self, model: StoredModel, count: int, there: list[Checkpoint]) -> ann.Built:
        """An index of all stored vectors, with the last one's training where that still fits."""
        kind = self.store.setting("faiss") or ann.choose(count, model)
        before = None
        if there and there[0].kind == kind and there[0].trained:
            if not ann.retrain_due(there[0].trained, count):
                loaded = checkpoint.load(self.directory, there[0], model, owned=True)
                if loaded is not None:
                    before = ann.Built(loaded.segments[0], kind, there[0].trained)
        return ann.build(model, kind, count, lambda: self.store.vectors(model), before)

    def rebuild_lexical(self) -> None:
        """Build tantivy's files anew, whatever they look like."""
        self._close_lexical()
        self.lexical = rebuild_on_disk(self.store)

    # -- space ---------------------------------------------------------------------------------

    def vacuum(self) -> None:
        """Rewrite the database without free pages; needs as much space again while it runs."""
        with storage_errors(self.directory):
            self.store.connection.execute("VACUUM")
            self._fold_log()
            self.store.connection.execute(
                f"PRAGMA busy_timeout = {int(1000 * schema.BUSY_TIMEOUT)}"
            )

    def scrub(self) -> bool:
        """Leave nothing of deleted rows in any file: rewrite the database, tantivy's files and FAISS's.

        Returns whether that is done. A reader that still looks at an older commit keeps the log from
        being emptied; the next writer tries again (setting `purge`).
        """
        self.sweep_vectors()
        with self.transaction() as transaction:
            transaction.set("purge", "pending")
            transaction.drop_checkpoints(self._catalogued())
        with storage_errors(self.directory):
            self.sweep_files()
            self.rebuild_lexical()
            model = self.store.model()
            if model is not None:
                self.checkpoint(model, force=True)
            self.store.connection.execute("VACUUM")
        with self.transaction() as transaction:
            transaction.set("purge", "log")  # nothing else holds what was deleted
        return self._empty_log(min(_PURGE_PATIENCE, schema.BUSY_TIMEOUT))

    def _resume_purge(self) -> None:
        """Finish what a process began that did not live to finish it, or that a reader kept from it."""
        pending = self.store.setting("purge")
        if pending == "log":
            self._empty_log(_FOLDING_PATIENCE_MS / 1000)
        elif pending is not None:
            self.scrub()

    def _empty_log(self, patience: float) -> bool:
        """The end of a purge: the log holds what was deleted until no reader needs it."""
        with storage_errors(self.directory):
            self.store.connection.execute(f"PRAGMA busy_timeout = {int(1000 * patience)}")
            (busy, *_) = self.store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self.store.connection.execute(
                f"PRAGMA busy_timeout = {int(1000 * schema.BUSY_TIMEOUT)}"
            )
        if busy:
            logger.warning(
                "another process still reads an older commit, and its log holds what was deleted; the "
                "next writer, or `ragembed compact`, finishes the purge"
            )
            return False
        with storage_errors(self.directory):
            sync_directory(self.directory)  # a power cut must not bring a removed file back
        with self.transaction() as transaction:
            transaction.unset("purge")
        return True

    def _catalogued(self) -> list[str]:
        return [file for (file,) in self.store.connection.execute("SELECT file FROM checkpoint")]


def page_bytes(store: Store) -> tuple[int, int]:
    """Bytes of free pages in the database, and of all its pages."""
    (size,) = store.connection.execute("PRAGMA page_size").fetchone()
    (free,) = store.connection.execute("PRAGMA freelist_count").fetchone()
    (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
    return int(free) * int(size), int(pages) * int(size)
