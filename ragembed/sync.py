"""Bringing an index into step with its roots: take in what is new, drop what is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ragembed.changes import Finished, Renamed, Touched, Unchanged, look
from ragembed.config import ChunkingConfig, IndexConfig, ScanConfig
from ragembed.encoder.embedder import Embedder
from ragembed.errors import MassDelete
from ragembed.index.commit import Writer
from ragembed.index.rows import StoredDocument
from ragembed.index.store import Store
from ragembed.index.transaction import Transaction
from ragembed.indexer import Change, Incoming, Ingest, Listener, Progress, Tally, ahead
from ragembed.removal import move_roots
from ragembed.retriever import display_path
from ragembed.roots import Target, moved_roots, relative, targets
from ragembed.tokenizer import Tokenizer
from ragembed.types import Skipped, SyncReport


@dataclass(frozen=True, slots=True)
class Tools:
    """What turns documents into rows; the embedder and its tokenizer are loaded when first needed."""

    embedder: Callable[[], Embedder]
    tokenizer: Callable[[], Tokenizer]
    chunking: Callable[[Store], ChunkingConfig]
    index: IndexConfig
    moved: Mapping[str, str]  # roots that are somewhere else now: old path -> new path


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """See `Corpus.sync`."""

    scan: ScanConfig | None = None
    prune: bool = True
    allow_mass_delete: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class _Pending:
    """What is written in one transaction once a target has been looked at."""

    touched: list[Touched] = field(default_factory=list)
    renamed: list[Renamed] = field(default_factory=list)
    finished: Finished = Finished((), (), "")


class Syncer:
    """One run of `Corpus.sync`."""

    def __init__(
        self, directory: Path, tools: Tools, options: SyncOptions, listener: Listener | None
    ) -> None:
        self._directory = directory
        self._protect = [os.path.abspath(directory)]
        self._tools = tools
        self._options = options
        self._listener = listener
        self._tally = Tally()
        self._skipped: list[Skipped] = []
        self._accidents: list[str] = []

    def run(self, paths: Sequence[str | Path]) -> SyncReport:
        """Sync the roots that paths stand for; see `Corpus.sync`."""
        started = time.monotonic()
        if self._options.dry_run:
            store = Store.open(self._directory)
            try:
                roots = moved_roots(store.roots(), self._tools.moved)
                for target in targets(roots, paths, self._options.scan):
                    self._rehearse(store, target)
            finally:
                store.close()
        else:
            with Writer(self._directory) as writer:
                move_roots(writer, self._tools.moved)
                for target in targets(writer.store.roots(), paths, self._options.scan):
                    self._sync_target(writer, target)
                writer.finish()
        report = report_of(self._tally, self._skipped, time.monotonic() - started)
        if self._accidents:
            raise MassDelete(
                f"nothing was removed, because {'; '.join(self._accidents)}: restore the folder, or "
                "say --allow-mass-delete to remove the documents from the index",
                report,
            )
        return report

    def _sync_target(self, writer: Writer, target: Target) -> None:
        root_id = self._root_id(writer, target)
        chunking = self._tools.chunking(writer.store)
        ingest = Ingest(
            writer, self._tools.embedder, chunking, self._tools.index, self._tally, self._listener
        )
        pending = _Pending()
        documents = writer.store.documents(root_id)
        items = look(target, root_id, documents, self._tools.tokenizer, chunking, self._protect)
        for item in ahead(items):
            if isinstance(item, Incoming):
                ingest.put(item)
            else:
                self._note(item, pending)
        ingest.flush()
        self._settle(writer, target, root_id, pending)

    def _rehearse(self, store: Store, target: Target) -> None:
        """A dry run: everything but encoding and writing."""
        chunking = self._tools.chunking(store)
        documents = _documents(store, target)
        pending = _Pending()
        model = store.model()
        seen: set[bytes] = set()
        items = look(target, 0, documents, self._tools.tokenizer, chunking, self._protect)
        for item in ahead(items):
            if isinstance(item, Incoming):
                self._tally.count(item)
                fresh = [key for key in item.texts if key not in seen]
                known = store.vector_ids_of_keys(model.id, fresh) if model else {}
                seen.update(fresh)
                self._tally.embedded += len(fresh) - len(known)
                windows = sum(len(passage.windows) for passage in item.row.passages)
                self._tally.reused += windows - (len(fresh) - len(known))
            else:
                self._note(item, pending)
        self._tally.renamed += len(pending.renamed)
        self._tally.removed += len(self._removable(target, pending.finished))

    def _note(self, item: Unchanged | Touched | Renamed | Finished, pending: _Pending) -> None:
        if isinstance(item, Unchanged):
            self._tally.unchanged += item.count
        elif isinstance(item, Touched):
            self._tally.unchanged += 1
            pending.touched.append(item)
        elif isinstance(item, Renamed):
            pending.renamed.append(item)
        else:
            pending.finished = item

    def _root_id(self, writer: Writer, target: Target) -> int:
        """The target's root, made or given its new settings where that is due."""
        known = {root.id: root for root in writer.store.roots()}
        if target.root_id is not None:
            if known[target.root_id].scan == target.config.to_json():
                return target.root_id
        with writer.transaction() as transaction:
            root_id = transaction.put_root(target.path, target.file, target.config.to_json())
            for inner in target.absorbs:
                _absorb(transaction, writer.store.documents(inner.id), target, inner.path, root_id)
                transaction.delete_root(inner.id)
        return root_id

    def _removable(self, target: Target, finished: Finished) -> Sequence[StoredDocument]:
        root = os.fsdecode(target.path)
        self._skipped += [
            Skipped(root, display_path(path), code, cause) for path, code, cause in finished.skipped
        ]
        if not self._options.prune:
            return ()
        if finished.accident and not self._options.allow_mass_delete:
            self._accidents.append(finished.accident)
            return ()
        return finished.gone

    def _settle(self, writer: Writer, target: Target, root_id: int, pending: _Pending) -> None:
        """Write what needed no encoding, if there is anything."""
        gone = self._removable(target, pending.finished)
        subtree = target.subtree
        stored = [
            (path, code, cause)
            for root, path, code, cause in writer.store.skipped()
            if root == root_id
            and (not subtree or path == subtree or path.startswith(subtree + b"/"))
        ]
        same_skipped = sorted(stored) == sorted(pending.finished.skipped)
        if not (gone or pending.touched or pending.renamed) and same_skipped:
            return
        with writer.transaction() as transaction:
            for document in gone:
                transaction.delete_document(document.id)
            for renamed in pending.renamed:
                transaction.move_document(renamed.document.id, root_id, renamed.path, renamed.facts)
            for touched in pending.touched:
                transaction.touch_document(touched.document.id, touched.facts)
            transaction.put_skipped(root_id, subtree, pending.finished.skipped)
        self._tally.renamed += len(pending.renamed)
        self._tally.removed += len(gone)
        changes: list[tuple[Change, bytes]] = [("renamed", r.path) for r in pending.renamed]
        changes += [("removed", document.path) for document in gone]
        if self._listener is not None and changes:
            self._listener(Progress(0, 0, tuple(changes)))


def _absorb(
    transaction: Transaction,
    documents: Sequence[StoredDocument],
    target: Target,
    inner: bytes,
    root_id: int,
) -> None:
    """Documents of a root inside a new one become the new one's, under a longer path."""
    for document in documents:
        path = _path_in(target, inner, document.path)
        transaction.move_document(document.id, root_id, path, document.facts)


def _path_in(target: Target, inner: bytes, path: bytes) -> bytes:
    """The path in a target of a document of a root inside it."""
    return b"/".join(part for part in (relative(target.path, inner), path) if part)


def _documents(store: Store, target: Target) -> list[StoredDocument]:
    """What a target's root holds, or would hold once it is made."""
    if target.root_id is not None:
        return store.documents(target.root_id)
    return [
        document._replace(path=_path_in(target, inner.path, document.path))
        for inner in target.absorbs
        for document in store.documents(inner.id)
    ]


def report_of(tally: Tally, skipped: Sequence[Skipped], seconds: float) -> SyncReport:
    """A run's counts as its report."""
    return SyncReport(
        added=tally.added,
        updated=tally.updated,
        renamed=tally.renamed,
        unchanged=tally.unchanged,
        removed=tally.removed,
        skipped=tuple(skipped),
        passages=tally.passages,
        windows=tally.windows,
        embedded=tally.embedded,
        reused=tally.reused,
        tokens=tally.tokens,
        unknown=tally.unknown,
        seconds=round(seconds, 3),
    )
