"""What an index holds and what is wrong with it, from its database and the sizes of its files."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from ragembed.index.checkpoint import is_there
from ragembed.index.commit import page_bytes
from ragembed.index.rows import StoredModel, StoredRoot
from ragembed.index.store import Store, stored_dtype
from ragembed.retriever import display_path
from ragembed.roots import moved_roots
from ragembed.types import ModelInfo, Problem, Root, Status

UNKNOWN_WARNING = 0.05  # share of unknown tokens above which a document is named


def describe(store: Store, moved: Mapping[str, str]) -> Status:
    """The status of an index; reads no vector and loads no model. `moved` are roots' new places."""
    with store.snapshot():
        documents, passages, windows = store.counts()
        model = store.model()
        previous = store.previous_model()
        roots = moved_roots(store.roots(), moved)
        committed = store.setting("committed_ns")
        problems = [
            *_unknown_problems(store),
            *_skipped_problems(store),
            *_root_problems(roots),
            *(_checkpoint_problems(store, model) if model else ()),
        ]
        dead = page_bytes(store)[0] + (_dead_vectors(store, model) if model else 0)
    return Status(
        documents=documents,
        passages=passages,
        windows=windows,
        roots=tuple(
            Root(r.id, os.fsdecode(os.path.join(r.path, r.file) if r.file else r.path))
            for r in roots
        ),
        model=ModelInfo(model.name, model.dimension, model.fingerprint)
        if model
        else ModelInfo("", 0, ""),
        disk_bytes=directory_bytes(store.directory),
        problems=tuple(problems),
        dead_bytes=dead,
        committed=_iso(int(committed)) if committed else "",
        previous=previous.name if previous else "",
    )


def _iso(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=timezone.utc).isoformat(timespec="seconds")


def _dead_vectors(store: Store, model: StoredModel) -> int:
    """Bytes of vectors that wait to be dropped: in FAISS's newest file, and without a window."""
    size = model.dimension * np.dtype(stored_dtype(model.precision)).itemsize
    gone = 0
    for known in store.checkpoints(model.id)[:1]:
        ids = store.deleted("vector", max(known.generation, store.floor))
        gone = sum(id <= known.max_vector_id for id in ids)
    (strays,) = store.connection.execute(
        "SELECT count(*) FROM stray s WHERE NOT EXISTS "
        "(SELECT 1 FROM window w WHERE w.vector_id = s.vector_id)"
    ).fetchone()
    return size * (gone + int(strays))


def _root_problems(roots: Sequence[StoredRoot]) -> list[Problem]:
    return [
        Problem(
            "root_missing",
            os.fsdecode(root.path),
            "mount or restore it, say where it is now with `ragembed --root OLD=NEW index`, or "
            "`ragembed remove` it; its documents are kept until then",
        )
        for root in roots
        if not os.path.isdir(root.path)
    ]


def _checkpoint_problems(store: Store, model: StoredModel) -> list[Problem]:
    return [
        Problem(
            "faiss",
            f"{store.directory / known.file} is missing or cut",
            "`ragembed index` writes it again",
        )
        for known in store.checkpoints(model.id)[:1]
        if not is_there(store.directory, known)
    ]


def directory_bytes(directory: Path) -> int:
    """Bytes of all files of an index."""
    walk = os.walk(directory)  # passes over what it cannot list, or what a writer has just dropped
    return sum(_size(Path(folder, name)) for folder, _, names in walk for name in names)


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0  # a writer has just dropped it
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _unknown_problems(store: Store) -> list[Problem]:
    heavy = [
        (document, share)
        for document in store.documents()
        if (share := document.unknown / max(1, document.tokens)) > UNKNOWN_WARNING
    ]
    if not heavy:
        return []
    worst, share = max(heavy, key=lambda pair: pair[1])
    return [
        Problem(
            "unknown_tokens",
            f"over {UNKNOWN_WARNING:.0%} of the tokens of {len(heavy)} "
            f"{'document' if len(heavy) == 1 else 'documents'} are unknown to the model; most in "
            f"{display_path(worst.path)} ({share:.0%})",
            "they are found by their words; for meaning, index with a multilingual model (--model)",
        )
    ]


def _skipped_problems(store: Store) -> list[Problem]:
    counts = Counter(code for _, _, code, _ in store.skipped())
    return [
        Problem(
            "skipped",
            f"{count} {'file was' if count == 1 else 'files were'} skipped as {code}",
            "`ragembed ls --skipped` names them and says why",
        )
        for code, count in sorted(counts.items())
    ]
