"""The lexical leg: BM25 by tantivy over analysed terms.

tantivy is derived from the database and rebuilt when it is missing, stale or damaged. One marker
document carries the generation that a commit reflects, so that it changes in the same commit as the
passages. Queries are built from terms, never parsed: nothing a user types is syntax. Every file
tantivy writes ends in a CRC-32 of its content, which is checked before the file is trusted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tantivy

from ragembed.index.analysis import ANALYSER_VERSION
from ragembed.index.disk import PRIVATE_FOLDER, make_private

_SCHEMA_VERSION = 2  # of the fields below
DIRECTORY = f"lexical-{_SCHEMA_VERSION}.{ANALYSER_VERSION}"
# Share of a match in title or headings beside one in the text (docs/retrieval.md).
TITLE_BOOST = 0.15
MAX_TERMS = 1024  # of a query, the first ones
_FOOTER_MAGIC = 1337
_SEGMENT_FILES = {".fast", ".fieldnorm", ".idx", ".store", ".term"}
_FOOTER_BYTES = 256  # the end of a file, with its CRC-32 in it
_HEAP = 64_000_000  # bytes tantivy may use before it writes a segment
_MARKER = ("marker", "generation")


class LexicalFailure(Exception):
    """tantivy's files cannot be used; they are to be built again from the database."""


class NoLexicalFiles(LexicalFailure):
    """There are none: lost, or about to be built by a process that did not live to do it."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What tantivy's files were when the writer of a commit left them."""

    generation: int
    digest: str


@dataclass(frozen=True, slots=True)
class PassageTerms:
    """What the lexical leg knows of a passage: its id, its document's, and terms with repetitions."""

    passage_id: int
    document_id: int
    body: Sequence[str]
    title: Sequence[str]


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("passage", indexed=True, fast=True)
    builder.add_unsigned_field("document", indexed=True)
    builder.add_text_field("body", tokenizer_name="whitespace", index_option="freq")
    builder.add_text_field("title", tokenizer_name="whitespace", index_option="freq")
    builder.add_text_field("marker", tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field("generation", fast=True)
    builder.add_unsigned_field("last_passage", fast=True)
    return builder.build()


@contextmanager
def _guarded() -> Iterator[None]:
    """tantivy reports damage as ValueError, or panics, which is no Exception."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise LexicalFailure(str(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise LexicalFailure(f"tantivy gave up: {error}") from error


class LexicalSnapshot:
    """One commit of tantivy; it stays what it is while later commits are made. Safe to share."""

    def __init__(self, index: tantivy.Index) -> None:
        with _guarded():
            self._schema = index.schema
            self._searcher = index.searcher()
            marker = tantivy.Query.term_query(self._schema, *_MARKER, "basic")
            found = [address for _, address in self._searcher.search(marker, 1).hits]
            generation = self._searcher.fast_field_values("generation", found)
            last = self._searcher.fast_field_values("last_passage", found)
        self.generation = int(generation[0] or 0) if generation else 0
        self.last_passage = int(last[0] or 0) if last else 0

    @property
    def passages(self) -> int:
        """Passages in it."""
        return max(0, self._searcher.num_docs - 1)

    def search(
        self, terms: Sequence[str], k: int, documents: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        """The k best passages for any of the terms: (passage id, BM25), best first, ties by id.

        `documents` are the only documents whose passages may be found; None allows all.
        """
        query = self._any_of(terms)
        if documents is not None:
            query = self._only(query, "document", documents)
        return self._run(query, k)

    def score(self, terms: Sequence[str], passage_ids: Sequence[int]) -> dict[int, float]:
        """BM25 of given passages; those that hold none of the terms are left out."""
        if not passage_ids:
            return {}
        return dict(
            self._run(self._only(self._any_of(terms), "passage", passage_ids), len(passage_ids))
        )

    def document_frequency(self, term: str) -> int:
        """Passages whose text holds a term."""
        return int(self._searcher.doc_freq("body", term))

    def _only(self, query: tantivy.Query, field: str, ids: Sequence[int]) -> tantivy.Query:
        chosen = tantivy.Query.term_set_query(self._schema, field, list(ids))
        return tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Must, query),
                (tantivy.Occur.Must, tantivy.Query.const_score_query(chosen, 0.0)),
            ]
        )

    def _run(self, query: tantivy.Query, k: int) -> list[tuple[int, float]]:
        with _guarded():
            hits = self._searcher.search(query, k, count=False).hits
            ids = self._searcher.fast_field_values("passage", [address for _, address in hits])
        found = [(int(i), float(s)) for i, (s, _) in zip(ids, hits, strict=True) if i is not None]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))

    def _any_of(self, terms: Sequence[str]) -> tantivy.Query:
        clauses = []
        for term in terms[:MAX_TERMS]:
            body = tantivy.Query.term_query(self._schema, "body", term, "freq")
            title = tantivy.Query.term_query(self._schema, "title", term, "freq")
            clauses.append((tantivy.Occur.Should, body))
            clauses.append((tantivy.Occur.Should, tantivy.Query.boost_query(title, TITLE_BOOST)))
        return tantivy.Query.boolean_query(clauses) if clauses else tantivy.Query.empty_query()


class LexicalIndex:
    """A tantivy index on disk, or in memory where the disk cannot be written."""

    def __init__(self, index: tantivy.Index, path: Path | None = None) -> None:
        self._index = index
        self._path = path
        self._writer: tantivy.IndexWriter | None = None
        self.reload()

    @classmethod
    def open(cls, directory: Path, seal: Seal | None = None) -> LexicalIndex:
        """Open checked files.

        `seal` is what the files of a commit were when its writer left them.

        Raises:
            NoLexicalFiles: there are none.
            LexicalFailure: one is damaged, or not the one that belongs under its name.
        """
        path = directory / DIRECTORY
        if not (path / "meta.json").is_file():
            raise NoLexicalFiles("there are no lexical files")
        if damaged := damaged_files(path):
            raise LexicalFailure(f"{damaged[0]} is damaged")
        with _guarded():
            index = cls(tantivy.Index(_schema(), path=str(path)), path)
        if seal and seal.generation == index.snapshot.generation and seal != index.seal():
            raise LexicalFailure("the files are not those that were written")
        return index

    def seal(self) -> Seal:
        """The newest commit's files, by name and checksum. Nothing but this says that a file of tantivy
        is the one it is called."""
        digest = hashlib.sha256()
        try:
            for file in named_files(self._path) if self._path is not None else ():
                digest.update(file.name.encode() + file.read_bytes()[-_FOOTER_BYTES:])
        except OSError as error:  # a writer has made its next commit meanwhile
            raise LexicalFailure(f"{error.filename} is gone") from error
        return Seal(self.snapshot.generation, digest.hexdigest())

    @classmethod
    def create(cls, directory: Path) -> LexicalIndex:
        """Start anew on disk; whatever was there is dropped."""
        for old in directory.glob("lexical-*"):
            # Out of the way at once: half a folder would look like damage after a crash.
            trash = directory / f"lexical-{uuid.uuid4().hex}.old"
            old.rename(trash)
            shutil.rmtree(trash)
        path = directory / DIRECTORY
        path.mkdir(mode=PRIVATE_FOLDER)
        with _guarded():
            return cls(tantivy.Index(_schema(), path=str(path)), path)

    @classmethod
    def in_memory(cls) -> LexicalIndex:
        """An empty index that leaves no trace."""
        return cls(tantivy.Index(_schema()))

    def reload(self) -> LexicalSnapshot:
        """See the newest commit; snapshots that were taken before stay as they are."""
        with _guarded():
            self._index.reload()
        self.snapshot = LexicalSnapshot(self._index)
        return self.snapshot

    def apply(
        self, generation: int, last_passage: int, add: Iterable[PassageTerms], remove: Iterable[int]
    ) -> None:
        """Add and remove passages in one commit that carries the generation it reflects."""
        with _guarded():
            if self._writer is None:
                self._writer = self._index.writer(_HEAP, 1)
            for passage_id in remove:
                # By query: tantivy's delete by term takes an integer for a signed one and finds none.
                wanted = tantivy.Query.term_query(self._index.schema, "passage", passage_id)
                self._writer.delete_documents_by_query(wanted)
            for passage in add:
                document = tantivy.Document()
                document.add_unsigned("passage", passage.passage_id)
                document.add_unsigned("document", passage.document_id)
                document.add_text("body", " ".join(passage.body))
                if passage.title:
                    document.add_text("title", " ".join(passage.title))
                self._writer.add_document(document)
            self._writer.delete_documents_by_term(*_MARKER)
            marker = tantivy.Document()
            marker.add_text(*_MARKER)
            marker.add_unsigned("generation", generation)
            marker.add_unsigned("last_passage", last_passage)
            self._writer.add_document(marker)
            self._writer.commit()
            if self._path is not None:
                make_private(self._path)
        self.reload()

    def close(self) -> None:
        """Let background merges finish and release the writer."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with _guarded():
                writer.wait_merging_threads()
            self.reload()


def peek(directory: Path) -> int:
    """The commit that the files on disk are of, unchecked; 0 where that cannot be told."""
    path = directory / DIRECTORY
    try:
        with _guarded():
            return LexicalSnapshot(tantivy.Index(_schema(), path=str(path))).generation
    except LexicalFailure:
        return 0


def named_files(path: Path) -> list[Path]:
    """The files of the newest commit, by name; raises LexicalFailure when that cannot be read."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        found = []
        for segment in meta["segments"]:
            name = segment["segment_id"].replace("-", "")
            # A crash may leave a list of deletions that no commit names; tantivy never reads it.
            deletes = segment["deletes"]
            deletions = f"{name}.{deletes['opstamp']}.del" if deletes else ""
            files = {file.name for file in path.glob(f"{name}.*") if file.suffix != ".del"}
            files |= {f"{name}{suffix}" for suffix in _SEGMENT_FILES}
            found += sorted(path / file for file in files | ({deletions} if deletions else set()))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LexicalFailure("meta.json is damaged") from error


def damaged_files(path: Path) -> list[str]:
    """Names of the files of the newest commit that are missing or do not match their CRC-32."""
    try:
        return [file.name for file in named_files(path) if not _crc_matches(file)]
    except LexicalFailure:
        return ["meta.json"]


def _crc_matches(file: Path) -> bool:
    """The footer: content, JSON with its "crc", the JSON's length, a magic number (both u32)."""
    try:
        data = file.read_bytes()
        length, magic = struct.unpack("<II", data[-8:])
        footer = json.loads(data[-8 - length : -8])
        content = memoryview(data)[: -8 - length]
        return magic == _FOOTER_MAGIC and zlib.crc32(content) == int(footer["crc"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False
