"""Corpus: the one door to an index. Command line, HTTP, MCP and adapters all come through it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from types import TracebackType

from ragembed.compact import compact
from ragembed.config import (
    ChunkingConfig,
    ContextConfig,
    ContextFormat,
    IndexConfig,
    InferenceConfig,
    RetrievalConfig,
    ScanConfig,
)
from ragembed.context import build_context
from ragembed.encoder.embedder import Embedder
from ragembed.errors import InvalidInput, MassDelete, ModelMismatch
from ragembed.index import schema
from ragembed.index.lock import create_index
from ragembed.index.rows import StoredDocument, StoredModel, StoredRoot
from ragembed.index.salvage import RepairReport, repair
from ragembed.index.snapshot import Searcher
from ragembed.index.store import Store
from ragembed.index.verify import Depth, verify
from ragembed.indexer import Listener
from ragembed.loader import Loader, tokenizer_of
from ragembed.reembed import Reader, forget_others, reembed, rollback
from ragembed.removal import remove_names
from ragembed.retriever import Retriever
from ragembed.roots import moved_roots, place_now, rebuild_command
from ragembed.status import describe
from ragembed.sync import Syncer, SyncOptions, Tools
from ragembed.texts import add_texts, delete_texts
from ragembed.tokenizer import DEFAULT_BUDGET, Tokenizer, budget_tokenizer
from ragembed.types import (
    CompactReport,
    Context,
    Document,
    Mode,
    ReembedReport,
    SearchResult,
    Status,
    SyncReport,
    Verification,
)


class Corpus:
    """An index directory with the means to fill it and to ask it.

    >>> import ragembed, tempfile
    >>> corpus = ragembed.open(tempfile.mkdtemp())
    >>> report = corpus.add([ragembed.Document(id="faq-1", text="Passages are cut at headings.")])
    >>> corpus.search("Where does a passage end?", k=1)[0].path
    'faq-1'
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        create: bool = True,
        encoder: Embedder | None = None,
        model: str | Path | None = None,
        chunking: ChunkingConfig | None = None,
        inference: InferenceConfig | None = None,
        retrieval: RetrievalConfig | None = None,
        index: IndexConfig | None = None,
        roots: Mapping[str, str] | None = None,
    ) -> None:
        """Open an index; nothing is loaded before it is needed.

        Args:
            directory: of the index; an empty one is an empty index.
            create: make it if it is not there.
            encoder: any `Embedder`, in place of a checkpoint.
            model: name or folder of a checkpoint; None takes the index's own, or the default.
            chunking: lengths for a new index; an existing one has its own.
            inference: device and dtype.
            retrieval: candidates and fusion weight.
            index: how vectors are stored and searched, for a new index.
            roots: folders that are somewhere else than when they were indexed: old path -> new path. A
                `sync` writes it down.

        Raises:
            IndexNotFound: there is none, and `create` is false.
            NotAnIndex, IndexVersionError, IndexDamaged, StorageError.
        """
        self.directory = Path(directory)
        self._loader = Loader(self.directory, encoder, model, inference or InferenceConfig())
        self._chunking = chunking
        self._retrieval = retrieval or RetrievalConfig()
        self._index_config = index or IndexConfig()
        self._moved = {
            os.path.abspath(old): os.path.realpath(new) for old, new in (roots or {}).items()
        }
        self._searcher: Searcher | None = None
        if create and not schema.exists(self.directory):
            create_index(self.directory)
        self._with_searcher()  # says at once what is wrong with the directory

    def close(self) -> None:
        """Release the index's files, and end the processes of several devices."""
        if self._searcher is not None:
            self._searcher.close()
            self._searcher = None
        self._loader.close()

    def __enter__(self) -> Corpus:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- writing -------------------------------------------------------------------------------

    def sync(
        self,
        *paths: str | Path,
        scan: ScanConfig | None = None,
        prune: bool = True,
        allow_mass_delete: bool = False,
        dry_run: bool = False,
        listener: Listener | None = None,
    ) -> SyncReport:
        """Bring the index into step with folders and files; without paths, with all known roots.

        Args:
            paths: roots, or parts of known roots.
            scan: which files count, from now on; None keeps what each root has.
            prune: remove documents whose files are gone.
            allow_mass_delete: even if that is most of a root.
            dry_run: report what would happen and change nothing.
            listener: called after each batch.

        Raises:
            InvalidInput: a path that is not there.
            IndexLocked: another process is writing.
            MassDelete: a root seems to be missing; all else was done, `.report` says what.
            ModelMismatch: the index was built with another model or chunking.
        """
        if self._loader.was_chosen:
            self.embedder()  # a mismatch is to be known before anything is done
        options = SyncOptions(scan, prune, allow_mass_delete, dry_run)
        syncer = Syncer(self.directory, self._tools(), options, listener)
        try:
            report = syncer.run(paths)
        except MassDelete:
            self._moved = {}  # all but the removal was done
            raise
        if not dry_run:
            self._moved = {}  # written down
        return report

    def add(self, documents: Iterable[Document], *, listener: Listener | None = None) -> SyncReport:
        """Store texts that are no files; one with a known id takes the other's place.

        Raises:
            InvalidInput: a blank id or text, an id given twice, metadata that JSON cannot hold;
                nothing is stored then.
        """
        return add_texts(self.directory, self._tools(), documents, listener)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove added texts by id; returns how many there were."""
        return delete_texts(self.directory, ids)

    def remove(self, names: Sequence[str], *, purge: bool = False) -> int:
        """Remove roots, folders, files or texts from the index; the files themselves stay.

        Returns how many documents there were. With `purge`, nothing of their text is left in any file
        of the index, which is rewritten for that.

        Raises:
            InvalidInput: a name that the index does not know; nothing is removed then.
        """
        removed = remove_names(self.directory, names, self._moved, purge=purge)
        self._moved = {}  # written down
        return removed

    def reembed(
        self,
        model: str | Path | None = None,
        *,
        encoder: Embedder | None = None,
        listener: Listener | None = None,
    ) -> ReembedReport:
        """Give the index another model: its vectors are built beside the old ones, then one commit
        switches. Searches go on meanwhile, and an interrupted run is gone on with.

        Args:
            model: name or folder of a checkpoint.
            encoder: any `Embedder`, in place of a checkpoint.
            listener: called after each batch.

        Raises:
            InvalidInput: the index is empty, neither model nor encoder was given, or a window is more
                than the model reads.
            ModelNotFound, ModelError: the checkpoint cannot be loaded.
        """
        if (model is None) == (encoder is None):
            raise InvalidInput("name a model, or give an encoder, and not both")
        chosen = encoder if encoder is not None else self._loader.load(str(model))
        reader = Reader(lambda: chosen, lambda: tokenizer_of(chosen))
        report = reembed(self.directory, reader, self.chunking, listener)
        if encoder is not None:
            self._loader.use(given=encoder)
        else:
            self._loader.use(loaded=chosen)
        return report

    def rollback(
        self, *, encoder: Embedder | None = None, listener: Listener | None = None
    ) -> ReembedReport:
        """Go back to the model before the last `reembed`. Passages that came since are read with it
        first; it is loaded (or `encoder` taken) only if there are any.

        Raises:
            InvalidInput: there is no model to go back to.
            ModelMismatch: the model to be found under its name is another one now.
        """

        def reader(stored: StoredModel) -> Reader:
            @cache
            def embedder() -> Embedder:
                found = encoder if encoder is not None else self._loader.load(stored.name)
                self._loader.check(found, stored)
                return found

            return Reader(embedder, lambda: tokenizer_of(embedder()))

        report = rollback(self.directory, reader, self.chunking, listener)
        self._loader.use(given=encoder)
        return report

    def forget_models(self) -> int:
        """Drop the vectors of every model but the one in use; returns how many models. There is
        nothing to roll back to then."""
        return forget_others(self.directory)

    def compact(self) -> CompactReport:
        """Give space back: vectors without windows, models that nothing goes back to, free pages."""
        return compact(self.directory)

    def repair(self, into: str | Path | None = None) -> RepairReport:
        """Mend derived files; save what is whole of a damaged database into a new index.

        Raises:
            IndexDamaged: the database is damaged, and `into` was not given or nothing can be read.
        """
        return repair(self.directory, None if into is None else Path(into))

    # -- reading -------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        k: int = 10,
        mode: Mode = "hybrid",
        documents: Collection[int] | None = None,
    ) -> SearchResult:
        """The k best passages for a query.

        `documents` are the ids of the only documents to search in (`Hit.document_id`,
        `documents()`); None searches all.

        Raises:
            InvalidInput: a blank query, or a k or mode that there is not.
            ModelMismatch: the model at hand is not the index's.
        """
        return self._retriever().search(query, k, mode, documents=documents)

    def context(
        self,
        question: str,
        *,
        max_tokens: int = 2000,
        tokenizer: str | Tokenizer = DEFAULT_BUDGET,
        format: ContextFormat = "markdown",
    ) -> Context:
        """Text that grounds an answer, of at most `max_tokens` tokens, with its sources.

        Args:
            question: what is to be answered.
            max_tokens: bound on the whole rendered text.
            tokenizer: counts the budget: a name (see `budget_tokenizer`) or a Tokenizer.
            format: how the text is rendered.

        Raises:
            InvalidInput: a blank question, a budget below 0, an unknown tokenizer.
        """
        counter = budget_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        config = ContextConfig(max_tokens=max_tokens, tokenizer=counter.name, format=format)
        question = question.encode("utf-8", "replace").decode()  # no lone surrogates in a prompt
        found = self._retriever().search(
            question, self._retrieval.candidates, "hybrid", nearest_sentence=False
        )
        return build_context(question, found.hits, counter, config)

    def documents(self) -> list[StoredDocument]:
        """All documents, by root and path."""
        with self._with_searcher().reading() as store:
            return store.documents(checked=True)

    def roots(self) -> list[StoredRoot]:
        """All roots, where they are now."""
        with self._with_searcher().reading() as store:
            return moved_roots(store.roots(), self._moved)

    def status(self) -> Status:
        """What the index holds and what is wrong with it."""
        with self._with_searcher().reading() as store:
            return describe(store, self._moved)

    def verify(self, depth: Depth = "default") -> Verification:
        """Check everything against everything; see `ragembed.index.verify`."""
        problems = tuple(verify(self.directory, depth))
        return Verification(ok=not problems, problems=problems)

    # -- parts ---------------------------------------------------------------------------------

    def reading(self) -> AbstractContextManager[Store]:
        """The database, for reads of one commit: `with corpus.reading() as store: ...`"""
        return self._with_searcher().reading()

    def embedder(self) -> Embedder:
        """The embedder, loaded when first asked for and checked against the index.

        Raises:
            ModelNotFound, ModelError: it cannot be loaded.
            ModelMismatch: the index holds vectors of another one.
        """
        with self.reading() as store:
            stored = store.model()
        return self._loader.embedder(stored)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that documents are cut with: the embedder's, if it has one."""
        return tokenizer_of(self.embedder())

    def chunking(self, store: Store) -> ChunkingConfig:
        """How this index cuts documents.

        Raises:
            ModelMismatch: other settings were asked for than the index was built with.
        """
        stored = store.setting("chunking")
        if stored is None:
            return self._chunking or ChunkingConfig()
        config = ChunkingConfig.from_json(json.loads(stored))
        if self._chunking is not None and self._chunking != config:
            raise ModelMismatch(
                f"the index in {self.directory} was cut with --window {config.window} --overlap "
                f"{config.overlap}: leave these options out, or build a new index: "
                f"`{rebuild_command(store.roots())} --window {self._chunking.window} "
                f"--overlap {self._chunking.overlap}`"
            )
        return config

    def _tools(self) -> Tools:
        return Tools(self.embedder, self.tokenizer, self.chunking, self._index_config, self._moved)

    def _with_searcher(self) -> Searcher:
        if self._searcher is None:
            self._searcher = Searcher(self.directory)
        return self._searcher

    def _retriever(self) -> Retriever:
        return Retriever(
            self._with_searcher(),
            self.embedder,
            self.tokenizer,
            self._retrieval,
            lambda path: place_now(path, self._moved),
        )
