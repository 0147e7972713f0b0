"""The values that travel through ragembed: frozen, plain, and the same in Python, JSON and HTTP.

Offsets count Unicode code points of the document's text; `end` is exclusive. The field names of
results (`Hit`, `Context`, `SyncReport`, ...) are those of the JSON that the command line prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Format = Literal["text", "markdown", "rst", "code", "html", "pdf"]
BlockKind = Literal["heading", "paragraph", "list_item", "table_row", "code"]
Mode = Literal["hybrid", "dense", "lexical"]

# Formats whose text is extracted: their spans refer to the extracted text and have no line numbers.
EXTRACTED_FORMATS: frozenset[str] = frozenset({"html", "pdf"})


@dataclass(frozen=True, slots=True)
class Block:
    """A structural piece of a document: `text[start:end]`, no blank space at either end.

    Blocks are ordered, do not overlap, and together hold every non-blank character.
    `level` (1 is the outermost) and `title` (without markup) are set for headings only.
    """

    start: int
    end: int
    kind: BlockKind
    level: int = 0
    title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text with an identity: what a reader makes of a file, or what a program adds.

    Attributes:
        id: the caller's name for a text; the path relative to its root for a file.
        text: the decoded or extracted text.
        title: the title, where the format has one.
        metadata: JSON-like values the caller wants back with each hit.
        format: how the text is structured.
        blocks: its structure; empty means "not parsed yet".
        pages: offsets at which pages start, for paged formats.
        encoding: the encoding the bytes were decoded from.
        replaced: characters that could not be kept (NUL, lone surrogates) and were replaced.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    format: Format = "text"
    blocks: tuple[Block, ...] = ()
    pages: tuple[int, ...] = ()
    encoding: str = "utf-8"
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """A slice of one passage, `text == document.text[start:end]`: the unit of encoding."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A structural piece of a document of bounded length: the unit of lexical search and context.

    `tokens` counts the encoder's tokens of its text, `unknown` those its vocabulary lacks.
    """

    start: int
    end: int
    text: str
    heading: tuple[str, ...]
    tokens: int
    unknown: int
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why; `code` is a stable word, `cause` a sentence."""

    root: str
    path: str
    code: str
    cause: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What a sync did. `embedded` + `reused` windows belong to added and updated documents."""

    added: int = 0
    updated: int = 0
    renamed: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: tuple[Skipped, ...] = ()
    passages: int = 0
    windows: int = 0
    embedded: int = 0
    reused: int = 0
    tokens: int = 0
    unknown: int = 0
    truncated: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where else the same text stands."""

    root: str
    path: str
    start: int
    end: int
    lines: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One passage that answers a query; `text` is exactly the document's text at [start, end).

    `score` orders the hits: the fused figure in hybrid mode, else the leg's own. `dense` is the
    cosine of the best window in [-1, 1] or None, `lexical` the raw BM25 or None. `highlights`
    are the best window and, within it, the best sentence, relative to `text`; `words` the spans of
    the words that matched. `file_sha256` is that of the file (or text) when it was indexed.
    """

    rank: int
    score: float
    dense: float | None
    lexical: float | None
    root: str
    path: str
    start: int
    end: int
    lines: tuple[int, int] | None
    page: int | None
    title: str
    heading: tuple[str, ...]
    text: str
    highlights: tuple[tuple[int, int], ...]
    document_id: int
    passage_id: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[Place, ...] = ()
    words: tuple[tuple[int, int], ...] = ()
    file_sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The hits of one query, best first; iterates as they do."""

    query: str
    mode: Mode
    hits: tuple[Hit, ...]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A citation: the marker used in the context and the exact span it stands for."""

    marker: str
    root: str
    path: str
    lines: tuple[int, int] | None
    page: int | None
    start: int
    end: int
    sha256: str
    file_sha256: str
    score: float
    title: str = ""
    heading: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Omitted:
    """A candidate that did not get into the context, and why."""

    root: str
    path: str
    start: int
    end: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Grounding text for a language model: `tokens` counts all of `text` and never passes
    `max_tokens`; whatever did not fit is listed in `omitted`."""

    question: str
    text: str
    tokens: int
    max_tokens: int
    tokenizer: str
    sources: tuple[Source, ...]
    omitted: tuple[Omitted, ...]


@dataclass(frozen=True, slots=True)
class Root:
    """A folder (or a single file) that sync keeps up with."""

    id: int
    path: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model whose vectors an index holds."""

    name: str
    dimension: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, where, and what mends it."""

    kind: str
    where: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What an index holds and what is wrong with it.

    `dead_bytes` is what `compact` gives back at least: free pages, and vectors that no window uses.
    `committed` is the time of the newest commit (ISO 8601, UTC), empty in a new index. `previous` is
    the model that `reembed --rollback` goes back to, empty where there is none.
    """

    documents: int
    passages: int
    windows: int
    roots: tuple[Root, ...]
    model: ModelInfo
    disk_bytes: int
    problems: tuple[Problem, ...]
    dead_bytes: int = 0
    committed: str = ""
    previous: str = ""


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """What a change of model did. `passages` and `windows` are those read anew, `embedded` the windows
    that went through the encoder; all are 0 where the other model's vectors were there already."""

    model: str
    previous: str
    passages: int
    windows: int
    embedded: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction did: bytes of the index directory before and after, and vectors dropped."""

    bytes_before: int
    bytes_after: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of `verify`: `ok` when no problem was found."""

    ok: bool
    problems: tuple[Problem, ...]


def to_json(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any result dataclass
    """A result as plain JSON types, with the same field names."""
    plain: dict[str, Any] = asdict(value)
    return plain
