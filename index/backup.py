"""A copy of an index while it is written to, and an index out of such a copy.

A backup is a folder like an index. Its database comes last and under another name, so that a backup that
was cut short is no index. Order: tantivy's files, whose commit is then not after the database's; a read
snapshot of the database; the FAISS files which that snapshot names; the database's own name.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from ragembed.errors import IndexDamaged, IndexNotFound, InvalidInput, NotAnIndex
from ragembed.index import schema
from ragembed.index.commit import Writer
from ragembed.index.copying import (
    bytes_below,
    copy_file,
    copy_stream,
    filling,
    put_in_place,
    refuse_filled,
    staged,
    sync_tree,
    write_file,
)
from ragembed.index.disk import (
    DATABASE,
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    refuse_network,
    storage_errors,
    sync_directory,
    sync_file,
)
from ragembed.index.lexical import (
    DIRECTORY,
    LexicalFailure,
    LexicalIndex,
    Seal,
    damaged_files,
    named_files,
)
from ragembed.index.lock import writer_lock
from ragembed.index.mend import Part, mend
from ragembed.index.rows import Checkpoint
from ragembed.index.store import Store
from ragembed.index.verify import verify

logger = logging.getLogger(__name__)

_PAGES = 4096  # of the database, copied between two looks at Ctrl-C
_WRITE_ONCE = 0o400
_TRIES = 3  # tantivy may merge files away while they are copied
# Of a database file: "file format write version" and "read version" (SQLite file format, section 1.3).
# A log needs shared memory and locks, which may not work where the copy goes; so it has none meanwhile.
_VERSIONS_AT, _WITHOUT_LOG, _WITH_LOG = 18, b"\x01\x01", b"\x02\x02"


@dataclass(frozen=True, kw_only=True, slots=True)
class BackupReport:
    """What was copied: all of one commit, the `generation`th."""

    directory: str
    generation: int
    documents: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreReport:
    """What was restored; `replaced` is where the index that was there is now, `rebuilt` what derives from
    the database and was damaged in the backup."""

    directory: str
    documents: int
    replaced: str = ""
    rebuilt: tuple[Part, ...] = ()


def backup(directory: Path, target: Path) -> BackupReport:
    """Copy an index to a new or empty directory, on any file system; a writer may go on meanwhile.

    Raises:
        NotAnIndex: something is in the target already.
        InvalidInput: the target lies inside the index.
        IndexNotFound, IndexVersionError, IndexDamaged, StorageError.
    """
    if target.resolve().is_relative_to(directory.resolve()):
        raise InvalidInput(f"{target} lies inside the index {directory}: name a folder outside")
    store = Store.open(directory)
    with closing(store), storage_errors(target), filling(target):
        _copy_lexical(directory, target)
        draft = target / f"{DATABASE}.new"
        with store.snapshot(), ExitStack() as files:
            generation, documents = store.generation, store.counts()[0]
            seal = store.lexical_seal()
            known = [file for model in store.models() for file in store.checkpoints(model.id)]
            # Opened now: a file that the writer drops meanwhile stays readable.
            streams = [(file, _opened(directory, file, files)) for file in known]
            with storage_errors(target):
                _copy_database(store, draft)
                copied = [file.file for file, stream in streams if _copied(target, file, stream)]
        with storage_errors(target):
            _finish_database(draft, copied)
        if not _fits(target, generation, seal):
            shutil.rmtree(target / DIRECTORY, ignore_errors=True)
        sync_directory(target)
        os.replace(draft, target / DATABASE)
        sync_directory(target)
    return BackupReport(
        directory=str(target), generation=generation, documents=documents, bytes=bytes_below(target)
    )


def _copy_lexical(directory: Path, target: Path) -> None:
    """tantivy's files, if a whole commit of them can be had; else they are built when first needed."""
    source, copy = directory / DIRECTORY, target / DIRECTORY
    for _ in range(_TRIES):
        try:
            _copy_commit(source, copy)
            if not (damaged := damaged_files(copy)):
                return
            logger.info("%s was not copied whole: %s", source, damaged[0])
        except (OSError, LexicalFailure) as error:
            logger.info("%s was not copied whole: %s", source, error)
        shutil.rmtree(copy, ignore_errors=True)


def _fits(target: Path, generation: int, seal: Seal | None) -> bool:
    """Whether tantivy's files can be brought up to a database's commit, or are of it."""
    try:
        lexical = LexicalIndex.open(target, seal)
        for lock in (target / DIRECTORY).glob(".*.lock"):
            lock.unlink()
    except (OSError, LexicalFailure) as error:
        logger.info("the lexical files are left out: %s", error)
        return False
    return lexical.snapshot.generation <= generation


def _copy_commit(source: Path, copy: Path) -> None:
    """The files that tantivy's newest commit names; they never change once they are there."""
    copy.mkdir(mode=PRIVATE_FOLDER)
    copy_file(source / "meta.json", copy / "meta.json")
    names = ["meta.json"]
    for file in named_files(source):
        copy_file(file, copy / file.name)
        names.append(file.name)
    write_file(copy / ".managed.json", json.dumps(names).encode())  # what tantivy may drop one day
    sync_directory(copy)


def _copy_database(store: Store, draft: Path) -> None:
    """The pages of the store's snapshot; without locks, which may not work where the copy goes."""
    draft.touch(mode=PRIVATE_FILE, exist_ok=False)
    with closing(_unlocked(draft)) as copy:
        store.connection.backup(copy, pages=_PAGES)


def _finish_database(draft: Path, copied: Sequence[str]) -> None:
    """Strike the FAISS files that were not copied, and make all of it durable."""
    _set_versions(draft, _WITHOUT_LOG)
    with closing(_unlocked(draft)) as copy:
        marks = ",".join("?" * len(copied))
        copy.execute(f"DELETE FROM checkpoint WHERE file NOT IN ({marks})", copied)
    _set_versions(draft, _WITH_LOG)
    sync_file(draft)


def _set_versions(draft: Path, versions: bytes) -> None:
    with open(draft, "r+b") as file:
        file.seek(_VERSIONS_AT)
        file.write(versions)


def _unlocked(draft: Path) -> sqlite3.Connection:
    uri = draft.resolve().as_uri() + "?mode=rw&nolock=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def _opened(directory: Path, known: Checkpoint, files: ExitStack) -> BinaryIO | None:
    if Path(known.file).name != known.file:  # no name of ours
        return None
    try:
        return files.enter_context(open(directory / known.file, "rb"))
    except OSError:
        return None


def _copied(target: Path, known: Checkpoint, stream: BinaryIO | None) -> bool:
    """Copy a FAISS file; False, and nothing is left of it, when it is not what was catalogued."""
    if stream is None:
        return False
    copy = target / known.file
    if copy_stream(stream, copy) == (known.size, known.sha256):
        copy.chmod(_WRITE_ONCE)
        return True
    logger.warning("%s is damaged and is left out of the backup", known.file)
    copy.unlink()
    return False


# -- restoring ---------------------------------------------------------------------------------


def restore(source: Path, directory: Path, *, replace: bool = False) -> RestoreReport:
    """Make an index out of a backup, or of an index directory that nobody writes to.

    It is copied beside its place, checked there, and renamed; what was there before stays until then,
    and with `replace` it is kept under another name. Nothing is written to the source.

    Raises:
        InvalidInput: there is an index already, and `replace` was not asked for.
        NotAnIndex: the source is none, or the directory holds something else.
        IndexDamaged: the source's database is; the directory is as it was.
        IndexNotFound, IndexVersionError, IndexLocked, StorageError.
    """
    directory = Path(os.path.realpath(directory))
    _refuse_source(source)
    taken = schema.exists(directory)
    if taken and not replace:
        raise InvalidInput(
            f"there is an index in {directory} already: name another directory, or put the backup in "
            "its place with --replace, which keeps the old one under another name"
        )
    if not taken:
        refuse_filled(directory)
    with storage_errors(directory), staged(directory) as folder:
        refuse_network(folder)
        _copy_index(source, folder)
        rebuilt = _check(source, folder)
        with Writer(folder) as writer:
            with writer.transaction() as transaction:  # its commits are not those of the source
                transaction.set("history", uuid.uuid4().hex)
            documents = writer.store.counts()[0]
        replaced = _swap(folder, directory) if taken else None
        if replaced is None:
            put_in_place(folder, directory)
    return RestoreReport(
        directory=str(directory),
        documents=documents,
        replaced="" if replaced is None else str(replaced),
        rebuilt=rebuilt,
    )


def _refuse_source(source: Path) -> None:
    if schema.exists(source):
        return
    if source.is_dir() and any(source.iterdir()):
        raise NotAnIndex(
            f"{source} is no backup: there is no {DATABASE} in it (a backup that was cut short has none)"
        )
    raise IndexNotFound(f"there is no backup in {source}")


def _copy_index(source: Path, folder: Path) -> None:
    """The files that belong to an index, and no others."""
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-journal"):
        if (source / name).is_file():
            copy_file(source / name, folder / name)
    for file in source.glob("vectors-*.faiss"):
        copy_file(file, folder / file.name)
        (folder / file.name).chmod(_WRITE_ONCE)
    if (source / DIRECTORY).is_dir():
        (folder / DIRECTORY).mkdir(mode=PRIVATE_FOLDER)
        for file in (source / DIRECTORY).iterdir():
            if file.is_file() and file.suffix != ".lock":
                copy_file(file, folder / DIRECTORY / file.name)


def _check(source: Path, folder: Path) -> tuple[Part, ...]:
    """Verify the copy and build its derived files again where they are damaged."""
    try:
        if (folder / f"{DATABASE}-journal").exists():  # only who may write can roll it back
            with closing(sqlite3.connect(folder / DATABASE)) as connection:
                connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if schema.stored_format(folder) != schema.FORMAT:
            with Writer(folder):
                pass  # brings it up to date
        return mend(folder, verify(folder))
    except IndexDamaged as error:
        message = str(error).replace(str(folder), str(source))
        raise IndexDamaged(f"{message}; nothing was restored") from error


def _swap(folder: Path, directory: Path) -> Path:
    """Put a finished index in the place of another, which is kept; returns where."""
    sync_tree(folder)
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    with writer_lock(directory):
        aside = directory.with_name(f"{directory.name}.replaced-{now}")
        number = 1
        while os.path.lexists(aside):
            number += 1
            aside = directory.with_name(f"{directory.name}.replaced-{now}-{number}")
        os.rename(directory, aside)
        try:
            os.rename(folder, directory)
        except BaseException:
            os.rename(aside, directory)
            raise
    sync_directory(directory.parent)
    return aside
