"""What an index holds and what is wrong with it, from its database and the sizes of its files."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

from ragembed.index.store import Store
from ragembed.retriever import display_path
from ragembed.types import ModelInfo, Problem, Root, Status

UNKNOWN_WARNING = 0.05  # share of unknown tokens above which a document is named


def describe(store: Store) -> Status:
    """The status of an index; reads no vector and loads no model."""
    with store.snapshot():
        documents, passages, windows = store.counts()
        model = store.model()
        roots = store.roots()
        problems = [*_unknown_problems(store), *_skipped_problems(store)]
        problems += [
            Problem(
                "root_missing",
                os.fsdecode(root.path),
                "mount or restore it, or `ragembed remove` it; its documents are kept until then",
            )
            for root in roots
            if not os.path.isdir(root.path)
        ]
        for checkpoint in store.checkpoints(model.id)[:1] if model else []:
            file = store.directory / checkpoint.file
            if not file.is_file() or file.stat().st_size != checkpoint.size:
                problems.append(
                    Problem(
                        "faiss", f"{file} is missing or cut", "`ragembed index` writes it again"
                    )
                )
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
        disk_bytes=sum(map(_size, store.directory.rglob("*"))),
        problems=tuple(problems),
    )


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
