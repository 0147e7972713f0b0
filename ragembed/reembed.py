"""Another model for an index: its vectors are built beside the old ones, then one commit switches.

Searches go on with the old model meanwhile. What has been built is committed as it comes: an interrupted
run is gone on with, and until the switch nothing has changed for anybody. The old vectors stay, so that
a rollback only has to encode what has changed since.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragembed.chunking import Reading, read
from ragembed.config import ChunkingConfig
from ragembed.encoder.embedder import Embedder
from ragembed.errors import InvalidInput
from ragembed.index import lookup
from ragembed.index.ann import check_factory
from ragembed.index.commit import Writer
from ragembed.index.rows import PassageReading, StoredModel, StoredPassage, WindowRow
from ragembed.index.store import Store
from ragembed.indexer import Listener, Progress, check_room, embedder_name, encoded
from ragembed.tokenizer import Tokenizer
from ragembed.types import ReembedReport

_BATCH = 256  # passages read, encoded and committed together


@dataclass(frozen=True, slots=True)
class Reader:
    """A model and the means to read passages with it; both are loaded when they are first needed."""

    embedder: Callable[[], Embedder]
    tokenizer: Callable[[], Tokenizer]


def reembed(
    directory: Path,
    reader: Reader,
    chunking: Callable[[Store], ChunkingConfig],
    listener: Listener | None = None,
) -> ReembedReport:
    """See `Corpus.reembed`."""
    started = time.monotonic()
    embedder = reader.embedder()
    with Writer(directory) as writer:
        current = _current(writer)
        check_room(embedder, chunking(writer.store))
        if factory := writer.store.setting("faiss"):
            check_factory(factory, embedder.dimension)
        with writer.transaction() as transaction:
            model = transaction.put_model(
                embedder_name(embedder),
                embedder.fingerprint,
                embedder.dimension,
                current.precision,
            )
            transaction.set("next_model", str(model.id))  # not to be compacted away meanwhile
        return _switch(writer, current, model, reader, chunking, listener, started)


def rollback(
    directory: Path,
    reader: Callable[[StoredModel], Reader],
    chunking: Callable[[Store], ChunkingConfig],
    listener: Listener | None = None,
) -> ReembedReport:
    """See `Corpus.rollback`; `reader` is asked for the model that was in use before."""
    started = time.monotonic()
    with Writer(directory) as writer:
        current = _current(writer)
        model = writer.store.previous_model()
        if model is None:
            raise InvalidInput(
                f"the index in {directory} has no model to go back to: `ragembed reembed --model NAME` "
                "builds the vectors of another"
            )
        return _switch(writer, current, model, reader(model), chunking, listener, started)


def forget_others(directory: Path) -> int:
    """Drop the vectors of every model but the one in use; returns how many models."""
    with Writer(directory) as writer:
        current = _current(writer)
        others = [model for model in writer.store.models() if model.id != current.id]
        for model in others:
            with writer.transaction() as transaction:
                transaction.delete_model(model)
        writer.sweep_files()
        writer.finish()
    return len(others)


def _current(writer: Writer) -> StoredModel:
    model = writer.store.model()
    if model is None:
        raise InvalidInput(
            f"the index in {writer.directory} is empty: `ragembed index PATH --model NAME` chooses its "
            "model"
        )
    return model


def _switch(
    writer: Writer,
    current: StoredModel,
    model: StoredModel,
    reader: Reader,
    chunking: Callable[[Store], ChunkingConfig],
    listener: Listener | None,
    started: float,
) -> ReembedReport:
    passages = windows = embedded = 0
    total = writer.store.unread_passages(model.id)
    config = chunking(writer.store)
    for batch in _unread(writer.store, model):
        texts = [passage.text for passage in batch]
        readings = read(texts, reader.tokenizer(), config)
        embedded += _commit(writer, model, reader.embedder(), batch, readings)
        passages += len(batch)
        windows += sum(len(reading.windows) for reading in readings)
        if listener is not None:
            # The windows to come are not known yet; passages are, and grow alike.
            listener(Progress(windows, round(windows * total / max(1, passages))))
    writer.checkpoint(model)  # before anybody needs it
    with writer.transaction() as transaction:
        transaction.use_model(model)
    writer.finish()
    return ReembedReport(
        model=model.name,
        previous=current.name,
        passages=passages,
        windows=windows,
        embedded=embedded,
        seconds=round(time.monotonic() - started, 3),
    )


def _unread(store: Store, model: StoredModel) -> Iterator[list[StoredPassage]]:
    """The passages that a model has not read, in parts."""
    last = 0
    while ids := store.unread_passage_ids(model.id, last, _BATCH):
        found = lookup.passages(store, ids)
        if lost := [id for id in ids if id not in found]:
            raise store.damaged(f"passage {lost[0]}")
        yield [found[id] for id in ids]
        last = ids[-1]


def _commit(
    writer: Writer,
    model: StoredModel,
    embedder: Embedder,
    passages: Sequence[StoredPassage],
    readings: Sequence[Reading],
) -> int:
    """Encode what has no vector yet and store how the model reads the passages."""
    texts: dict[bytes, str] = {}
    rows = []
    for passage, reading in zip(passages, readings, strict=True):
        windows = []
        for window in reading.windows:
            key = hashlib.sha256(window.text.encode("utf-8", "surrogatepass")).digest()
            texts[key] = window.text
            windows.append(WindowRow(passage.start + window.start, passage.start + window.end, key))
        rows.append(PassageReading(passage.id, reading.tokens, reading.unknown, tuple(windows)))
    vector_ids = writer.store.vector_ids_of_keys(model.id, texts)
    missing = [key for key in texts if key not in vector_ids]
    vectors = encoded(embedder, [texts[key] for key in missing], model) if missing else None
    with writer.transaction() as transaction:
        if vectors is not None:
            vector_ids.update(transaction.put_vectors(model, missing, vectors))
        transaction.put_readings(model, rows, vector_ids)
    return len(missing)
