"""Documents into the index: chunk, encode, commit.

Reading and chunking run in a thread of their own, at most `_AHEAD` documents in front of the encoder,
so that they overlap with it and memory does not grow with the corpus. A batch of windows is encoded
and committed as a whole: what is committed survives Ctrl-C and a killed process, and the next run goes
on from there. The vectors of a long document are committed as they come; the document follows when it
is complete.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragembed.chunking import chunk
from ragembed.config import ChunkingConfig, IndexConfig
from ragembed.encoder.embedder import Embedder
from ragembed.errors import EncodingFailed, InvalidInput
from ragembed.index.analysis import detect_language
from ragembed.index.ann import check_factory
from ragembed.index.commit import Writer
from ragembed.index.rows import DocumentRow, FileFacts, PassageRow, StoredModel, WindowRow
from ragembed.places import LineNumbers, page_of
from ragembed.tokenizer import Tokenizer
from ragembed.types import EXTRACTED_FORMATS, Document

BATCH_WINDOWS = 256  # encoded and committed together
BATCH_DOCUMENTS = 256
_AHEAD = 64

Change = Literal["added", "updated", "renamed", "removed"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A document on its way into the index, and the stored one it takes the place of."""

    row: DocumentRow
    texts: dict[bytes, str]  # window key -> what the encoder reads
    replaces: int | None = None


@dataclass(slots=True)
class Tally:
    """Counts of a run so far."""

    added: int = 0
    updated: int = 0
    renamed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    windows: int = 0
    embedded: int = 0
    reused: int = 0
    tokens: int = 0
    unknown: int = 0

    def count(self, incoming: Incoming) -> Change:
        """Add a document; says whether it was added or updated."""
        passages = incoming.row.passages
        self.passages += len(passages)
        self.windows += sum(len(passage.windows) for passage in passages)
        self.tokens += sum(passage.tokens for passage in passages)
        self.unknown += sum(passage.unknown for passage in passages)
        if incoming.replaces is None:
            self.added += 1
            return "added"
        self.updated += 1
        return "updated"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run reports as it goes: windows done and known of, and, once committed, documents."""

    windows: int
    windows_known: int
    committed: tuple[tuple[Change, bytes], ...] = ()


Listener = Callable[[Progress], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


class _End:
    """Nothing more will come."""


def prepare(
    document: Document,
    facts: FileFacts,
    *,
    root_id: int | None,
    path: bytes,
    tokenizer: Tokenizer,
    chunking: ChunkingConfig,
    replaces: int | None = None,
) -> Incoming:
    """Chunk a document and lay it out as rows; needs no database."""
    passages = chunk(document, tokenizer, chunking)
    lines = None if document.format in EXTRACTED_FORMATS else LineNumbers(document.text)
    texts: dict[bytes, str] = {}
    rows = []
    for passage in passages:
        windows = []
        for window in passage.windows:
            key = hashlib.sha256(window.text.encode("utf-8", "surrogatepass")).digest()
            texts[key] = window.text
            windows.append(WindowRow(window.start, window.end, key))
        rows.append(
            PassageRow(
                start=passage.start,
                end=passage.end,
                lines=lines.span(passage.start, passage.end) if lines else None,
                page=page_of(document.pages, passage.start),
                heading=passage.heading,
                tokens=passage.tokens,
                unknown=passage.unknown,
                text=passage.text,
                windows=tuple(windows),
            )
        )
    row = DocumentRow(
        root_id=root_id,
        path=path,
        facts=facts,
        format=document.format,
        encoding=document.encoding,
        language=detect_language(document.text),
        title=document.title,
        metadata=document.metadata,
        replaced=document.replaced,
        text=document.text,
        passages=tuple(rows),
    )
    return Incoming(row, texts, replaces)


class Ingest:
    """Encodes and commits documents in batches; the last step of every way into the index."""

    def __init__(
        self,
        writer: Writer,
        embedder: Callable[[], Embedder],
        chunking: ChunkingConfig,
        config: IndexConfig,
        tally: Tally,
        listener: Listener | None = None,
    ) -> None:
        """`embedder` is called when there is something to encode."""
        self._writer = writer
        self._embedder = embedder
        self._chunking = chunking
        self._config = config
        self._tally = tally
        self._listener = listener
        self._waiting: list[Incoming] = []
        self._vector_ids: dict[bytes, int] = {}  # of the waiting documents
        self._missing: dict[bytes, str] = {}
        self._done = 0
        self._known = 0

    def put(self, incoming: Incoming) -> None:
        """Take a document; it is committed with its batch."""
        model = self._model()
        unseen = [k for k in incoming.texts if k not in self._vector_ids and k not in self._missing]
        found = self._writer.store.vector_ids_of_keys(model.id, unseen)
        self._vector_ids.update(found)
        fresh = {key: incoming.texts[key] for key in unseen if key not in found}
        self._missing.update(fresh)
        windows = sum(len(passage.windows) for passage in incoming.row.passages)
        self._tally.embedded += len(fresh)
        self._tally.reused += windows - len(fresh)
        self._waiting.append(incoming)
        self._known += windows
        while len(self._missing) >= 2 * BATCH_WINDOWS:  # a long document: its vectors come first
            self._encode(BATCH_WINDOWS)
        if len(self._missing) >= BATCH_WINDOWS or len(self._waiting) >= BATCH_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        """Encode and commit all that waits."""
        if not self._waiting:
            return
        self._encode(len(self._missing), last=True)
        self._waiting, self._vector_ids = [], {}

    def _model(self) -> StoredModel:
        """The index's model; the first document of an index makes the embedder's it."""
        model = self._writer.store.model()
        if model is None:
            embedder = self._embedder()
            check_room(embedder, self._chunking)
            with self._writer.transaction() as transaction:
                transaction.set("chunking", json.dumps(self._chunking.to_json()))
                if self._config.faiss:
                    check_factory(self._config.faiss, embedder.dimension)
                    transaction.set("faiss", self._config.faiss)
                model = transaction.put_model(
                    embedder_name(embedder),
                    embedder.fingerprint,
                    embedder.dimension,
                    self._config.precision,
                )
                transaction.use_model(model)
        return model

    def _encode(self, count: int, *, last: bool = False) -> None:
        """Encode `count` windows and commit their vectors; with `last`, the documents as well."""
        keys = list(self._missing)[:count]
        texts = [self._missing[key] for key in keys]
        model = self._model()
        vectors = encoded(self._embedder(), texts, model) if texts else None
        with self._writer.transaction() as transaction:
            if vectors is not None:
                self._vector_ids.update(
                    transaction.put_vectors(model, keys, vectors, ahead=not last)
                )
            if last:
                for incoming in self._waiting:
                    transaction.put_document(
                        incoming.row, model, self._vector_ids, incoming.replaces
                    )
        for key in keys:
            del self._missing[key]
        self._done += len(keys)
        committed: tuple[tuple[Change, bytes], ...] = ()
        if last:
            committed = tuple((self._tally.count(i), i.row.path) for i in self._waiting)
            self._done = self._known
        if self._listener is not None:
            self._listener(Progress(self._done, self._known, committed))


def encoded(embedder: Embedder, texts: Sequence[str], model: StoredModel) -> NDArray[np.float32]:
    """Vectors (n, d) of texts; raises EncodingFailed when their shape is another."""
    vectors = embedder.encode_document(texts)
    if vectors.shape != (len(texts), model.dimension):
        raise EncodingFailed(
            f"the embedder gave an array of shape {vectors.shape} for {len(texts)} texts; "
            f"({len(texts)}, {model.dimension}) is due"
        )
    return vectors


def embedder_name(embedder: Embedder) -> str:
    """What an embedder calls itself, else its class."""
    return str(getattr(embedder, "name", "") or type(embedder).__name__)


def check_room(embedder: Embedder, chunking: ChunkingConfig) -> None:
    """Refuse windows that the embedder could not read whole.

    Raises:
        InvalidInput: it says how many tokens it reads, and that is less than a window.
    """
    room: int | None = getattr(embedder, "max_tokens", None)
    if room is not None and chunking.window > room:
        raise InvalidInput(
            f"a window of {chunking.window} tokens is more than the {room} that "
            f"{embedder_name(embedder)} reads: choose a --window of at most {room}"
        )


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, made by a thread that stays a bounded number of them in front.

    An exception of the thread is raised here. When the consumer stops early, so does the thread.
    """
    channel: queue.Queue[T | _Raised | _End] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def put(item: T | _Raised | _End) -> None:
        while not stop.is_set():
            try:
                channel.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put(item)
            put(_End())
        except BaseException as error:  # handed over, and raised by the consumer
            put(_Raised(error))

    thread = threading.Thread(target=work, name="ragembed-reader", daemon=True)
    thread.start()
    try:
        while not isinstance(item := channel.get(), _End):
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()
