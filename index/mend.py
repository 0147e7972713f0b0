"""Derived files built again from the database, in place; the database is never touched up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ragembed.errors import IndexDamaged
from ragembed.index.commit import Writer
from ragembed.index.disk import damage_message
from ragembed.index.verify import verify
from ragembed.types import Problem

logger = logging.getLogger(__name__)

Part = Literal["faiss", "lexical"]

_ROUNDS = (
    3  # verify looks at the files only when the catalogue is sound, so one round may show another
)


def damaged_database(problems: Sequence[Problem]) -> Problem | None:
    """The first problem that is one of the database itself."""
    return next((problem for problem in problems if _part(problem) is None), None)


def mend(directory: Path, problems: Sequence[Problem]) -> tuple[Part, ...]:
    """Build again what derives from the database and is damaged; returns what that was.

    Args:
        directory: of the index.
        problems: what `verify` finds.

    Raises:
        IndexDamaged: the database itself is damaged; nothing was changed.
        IndexLocked, StorageError, IndexNotFound, NotAnIndex, IndexVersionError.
    """
    rebuilt: set[Part] = set()
    for _ in range(_ROUNDS):
        if not problems:
            break
        if (worst := damaged_database(problems)) is not None:
            raise IndexDamaged(damage_message(directory, f"{worst.kind}, {worst.where}"))
        rebuilt |= _build_again(directory, problems)
        problems = verify(directory)
    if problems:
        raise IndexDamaged(damage_message(directory, f"{problems[0].kind} comes back"))
    return tuple(part for part in ("faiss", "lexical") if part in rebuilt)


def _part(problem: Problem) -> Part | None:
    """Which derived part is damaged; None where it is the database."""
    if problem.kind == "lexical":
        return "lexical"
    catalogue = problem.kind == "checksum" and problem.where.startswith("checkpoint ")
    return "faiss" if problem.kind == "faiss" or catalogue else None


def _build_again(directory: Path, problems: Sequence[Problem]) -> set[Part]:
    for problem in problems:
        logger.info("building again: %s, %s", problem.kind, problem.where)
    parts = {part for problem in problems if (part := _part(problem)) is not None}
    with Writer(directory) as writer:
        if "lexical" in parts:
            writer.rebuild_lexical()
        if "faiss" in parts:
            with writer.transaction() as transaction:
                transaction.drop_checkpoints(
                    [p.where.partition(" ")[0] for p in problems if p.kind == "faiss"]
                )
                writer.store.connection.executemany(  # a name that is damaged cannot be asked for
                    "DELETE FROM checkpoint WHERE id = ?",
                    [(int(p.where.rpartition(" ")[2]),) for p in problems if p.kind == "checksum"],
                )
            model = writer.store.model()
            if model is not None:
                writer.checkpoint(model, force=True)
    return parts
