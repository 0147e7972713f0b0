"""The rows that go into and come out of the index: plain values, named as the tables' columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ragembed.config import VectorPrecision


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What tells a changed file from an unchanged one; `checked_ns` is when it was looked at."""

    sha256: bytes
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    checked_ns: int = 0


@dataclass(frozen=True, slots=True)
class WindowRow:
    """A window: [start, end) in the source text, and the SHA-256 of what the encoder reads."""

    start: int
    end: int
    key: bytes


@dataclass(frozen=True, slots=True)
class PassageRow:
    """A passage with its place and its windows."""

    start: int
    end: int
    lines: tuple[int, int] | None
    page: int | None
    heading: tuple[str, ...]
    tokens: int
    unknown: int
    text: str
    windows: tuple[WindowRow, ...]


@dataclass(frozen=True, slots=True)
class PassageReading:
    """How a model reads a stored passage: its tokens, the unknown ones, its windows."""

    passage_id: int
    tokens: int
    unknown: int
    windows: tuple[WindowRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentRow:
    """A document to be stored; `root_id` is None for a text that is no file."""

    root_id: int | None
    path: bytes
    facts: FileFacts
    format: str
    encoding: str
    language: str
    title: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    replaced: int = 0
    text: str
    passages: tuple[PassageRow, ...]


class StoredDocument(NamedTuple):
    """A document as catalogued, without its text.

    A row as SQLite gives it: a run on unchanged files makes one for each and looks at little of it.
    """

    id: int
    root_id: int | None
    path: bytes
    sha256: bytes
    size: int
    mtime_ns: int
    inode: int
    checked_ns: int
    format: str
    encoding: str
    title: str
    metadata_json: str
    passages: int
    windows: int
    tokens: int
    unknown: int

    @property
    def facts(self) -> FileFacts:
        """What tells whether its file has changed."""
        return FileFacts(self.sha256, self.size, self.mtime_ns, self.inode, self.checked_ns)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """None where they are damaged, which the row's checksum says."""
        return metadata_of(self.metadata_json)


def metadata_of(column: str) -> Mapping[str, Any]:
    """A document's metadata from its column; none where that is damaged."""
    try:
        found = json.loads(column)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage as stored, with what a hit shows of its document."""

    id: int
    document_id: int
    start: int
    end: int
    lines: tuple[int, int] | None
    page: int | None
    heading: tuple[str, ...]
    text: str
    root_id: int | None
    path: bytes
    title: str
    language: str
    metadata: Mapping[str, Any]
    file_sha256: bytes


@dataclass(frozen=True, slots=True)
class StoredRoot:
    """A root: a folder, or a folder and the one file of it that counts."""

    id: int
    path: bytes
    file: bytes
    scan: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model whose vectors are in the index; `precision` is how they are stored."""

    id: int
    name: str
    fingerprint: str
    dimension: int
    precision: VectorPrecision = "float16"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A FAISS file in the index directory, as catalogued.

    `kind` is a FAISS factory string; `trained` is how many vectors there were when it was trained (0: it
    needs no training), `probes` how many of its lists a search looks into (0: it has no lists).
    """

    file: str
    size: int
    sha256: bytes
    vectors: int
    max_vector_id: int
    generation: int
    kind: str
    trained: int
    probes: int
