"""Giving space back: vectors nothing uses, models nothing goes back to, free pages."""

from __future__ import annotations

from pathlib import Path

from ragembed.index.commit import Writer
from ragembed.status import directory_bytes
from ragembed.types import CompactReport


def compact(directory: Path) -> CompactReport:
    """See `Corpus.compact`."""
    with Writer(directory) as writer:
        before = directory_bytes(directory)
        store = writer.store
        kept = {model.id for model in (store.model(), store.previous_model()) if model is not None}
        kept.add(int(store.setting("next_model") or 0))  # a `reembed` that can be gone on with
        for model in store.models():
            if model.id not in kept:
                with writer.transaction() as transaction:
                    transaction.delete_model(model)
        vectors = writer.sweep_vectors()
        current = store.model()
        if current is not None:
            writer.compact_checkpoints(current)
        writer.vacuum()
    return CompactReport(before, directory_bytes(directory), vectors)
