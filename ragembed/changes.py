"""What has happened to the files of a root since the index last saw them.

Looking comes before reading, and reading before parsing: a file whose size, time and inode are as
they were is unchanged; else its bytes are hashed; only new content is parsed, chunked and encoded.
A new path with the content of one that is gone is a rename. What is gone is removed, unless so much is
gone that the folder is more likely not there (unmounted, moved).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ragembed.config import ChunkingConfig
from ragembed.errors import ReadError
from ragembed.index.rows import FileFacts, StoredDocument
from ragembed.indexer import Incoming, prepare
from ragembed.readers import (
    RawFile,
    Sandbox,
    Scan,
    ScannedFile,
    extract,
    format_of,
    read_bytes,
    scan,
)
from ragembed.roots import Target
from ragembed.tokenizer import Tokenizer

# A file changed within so long of being read may have been changed again in the same tick.
_DOUBT_NS = 2_000_000_000
# With more documents than this, losing over half of a root is taken for an accident.
_SMALL_ROOT = 10
# The file could not be looked at; what the index has of it is not known to be wrong.
_ACCESS_CODES = frozenset({"permission", "io", "unstable", "timeout", "vanished"})


@dataclass(frozen=True, slots=True)
class Unchanged:
    """So many files that did not have to be read: size, time and inode are as they were."""

    count: int


@dataclass(frozen=True, slots=True)
class Touched:
    """The same content as before, looked at again."""

    document: StoredDocument
    facts: FileFacts


@dataclass(frozen=True, slots=True)
class Renamed:
    """The content of a document that is gone, under a new path."""

    document: StoredDocument
    path: bytes
    facts: FileFacts


@dataclass(frozen=True, slots=True)
class Finished:
    """All files of a target have been looked at."""

    gone: tuple[StoredDocument, ...]
    skipped: tuple[tuple[bytes, str, str], ...]
    accident: str  # why nothing should be removed, empty if all is well


Item = Incoming | Unchanged | Touched | Renamed | Finished


@dataclass(slots=True)
class _Look:
    """The state of one look at a target."""

    known: dict[bytes, StoredDocument]
    gone: dict[bytes, list[StoredDocument]]  # by content, of files that are not there any more
    skipped: list[tuple[bytes, str, str]] = field(default_factory=list)
    unreadable: list[StoredDocument] = field(default_factory=list)


def look(
    target: Target,
    root_id: int,
    documents: Sequence[StoredDocument],
    tokenizer: Callable[[], Tokenizer],
    chunking: ChunkingConfig,
    protect: Sequence[str],
) -> Iterator[Item]:
    """What has happened to the files of a target since the index last saw them.

    Args:
        target: a root or a part of it.
        root_id: of the documents to be made.
        documents: what the index holds of that root.
        tokenizer, chunking: how new content is cut; the tokenizer is asked for when there is some.
        protect: absolute paths that are never read (the index itself).
    """
    known = {
        document.path: document
        for document in documents
        if not target.subtree
        or document.path == target.subtree
        or document.path.startswith(target.subtree + b"/")
    }
    found = _list(target, protect)
    there = {file.path for file in found.files}
    kept = {path for path, code, _ in found.skipped if code in _ACCESS_CODES}
    lost = [
        document
        for path, document in known.items()
        if path not in there and path not in kept and not _below(path, found.unlisted)
    ]
    state = _Look(known, {}, list(found.skipped))
    for document in lost:
        state.gone.setdefault(document.facts.sha256, []).append(document)
    unchanged = 0
    with Sandbox() as sandbox:
        for file in found.files:
            stored = known.get(file.path)
            if stored is not None and _surely_same(stored, file):
                unchanged += 1
            else:
                yield from _look_at(file, target, root_id, state, tokenizer, chunking, sandbox)
    yield Unchanged(unchanged)
    gone = [document for group in state.gone.values() for document in group]
    yield Finished(
        tuple(gone + state.unreadable), tuple(state.skipped), _accident(target, known, gone, found)
    )


def _look_at(
    file: ScannedFile,
    target: Target,
    root_id: int,
    state: _Look,
    tokenizer: Callable[[], Tokenizer],
    chunking: ChunkingConfig,
    sandbox: Sandbox,
) -> Iterator[Item]:
    stored = state.known.get(file.path)
    now = time.time_ns()
    try:
        raw = read_bytes(os.fsdecode(target.path), file.path, target.config)
        facts = FileFacts(raw.sha256, raw.size, raw.mtime_ns, raw.inode, now)
        if stored is not None and stored.facts.sha256 == raw.sha256:
            yield Touched(stored, facts)
        elif stored is None and (old := _same_content(state, raw, file.path)) is not None:
            yield Renamed(old, file.path, facts)
        else:
            document = extract(raw, file.path, target.config, sandbox)
            yield prepare(
                document,
                facts,
                root_id=root_id,
                path=file.path,
                tokenizer=tokenizer(),
                chunking=chunking,
                replaces=None if stored is None else stored.id,
            )
    except ReadError as error:
        state.skipped.append((file.path, error.code, str(error)))
        if stored is not None and error.code not in _ACCESS_CODES:
            state.unreadable.append(stored)  # its content is gone, and what is there is no text


def _same_content(state: _Look, raw: RawFile, path: bytes) -> StoredDocument | None:
    for document in state.gone.get(raw.sha256, []):
        if format_of(document.path) == format_of(path):  # else it is parsed differently
            state.gone[raw.sha256].remove(document)
            return document
    return None


def _surely_same(stored: StoredDocument, file: ScannedFile) -> bool:
    return (
        stored.size == file.size
        and stored.mtime_ns == file.mtime_ns
        and stored.inode == file.inode
        and stored.checked_ns - stored.mtime_ns > _DOUBT_NS
    )


def _list(target: Target, protect: Sequence[str]) -> Scan:
    root = os.fsdecode(target.path)
    if not os.path.isdir(root):
        return Scan((), (), ())  # unmounted or moved: `_accident` says so
    if not target.file:
        return scan(root, target.config, subtree=target.subtree, protect=protect)
    # A file that was named is read whatever the ignore files say.
    try:
        status = os.lstat(os.path.join(target.path, target.file))
    except OSError:
        return Scan((), (), ())
    if not stat.S_ISREG(status.st_mode):
        return Scan((), ((target.file, "not_regular", "it is not a regular file"),), ())
    only = ScannedFile(target.file, status.st_size, status.st_mtime_ns, status.st_ino)
    return Scan((only,), (), ())


def _accident(
    target: Target,
    known: dict[bytes, StoredDocument],
    gone: Sequence[StoredDocument],
    found: Scan,
) -> str:
    """Why so many documents are gone that removing them is more likely wrong than right."""
    if known and not os.path.isdir(target.path):
        return f"{target.display} is not there"
    if not gone:
        return ""
    if target.subtree:
        return ""  # the user pointed at it
    if not found.files and not target.file:
        return f"{target.display} has no files"
    if len(known) > _SMALL_ROOT and 2 * len(gone) > len(known):
        return f"{len(gone)} of {len(known)} documents of {target.display} are gone"
    return ""


def _below(path: bytes, folders: Sequence[bytes]) -> bool:
    return any(not folder or path.startswith(folder + b"/") for folder in folders)
