"""A document as a JSON object and back; what comes back is trusted in nothing.

Everything is checked: keys, types, spans, row numbers, paths. The functions raise InvalidInput saying
what is wrong; the caller knows in which file and line.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import ntpath
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ragembed.config import ChunkingConfig, Config, ScanConfig
from ragembed.errors import InvalidInput
from ragembed.index.rows import DocumentRow, FileFacts, PassageRow, StoredRoot, WindowRow

C = TypeVar("C", bound=Config)
Json = dict[str, Any]

_MOST = 2**63 - 1  # SQLite's integers
_DEEPEST = 100  # levels of metadata; Python's JSON gives up at about a thousand
_SHOWN = 60  # characters of a wrong value in a message
_LINE_END = re.compile(r"\r\n|\r|\n")

_DOCUMENT = frozenset(
    {
        "root", "path", "sha256", "size", "mtime_ns", "inode", "checked_ns", "format", "encoding",
        "language", "title", "metadata", "replaced", "text", "passages",
    }
)  # fmt: skip
_PASSAGE = frozenset({"start", "end", "lines", "page", "heading", "tokens", "unknown", "windows"})


@dataclass(frozen=True, slots=True, eq=False)
class ReadRecord:
    """A document from a record: its row (no root id yet), its root's number, the vectors' rows by key."""

    row: DocumentRow
    root: int | None
    vector_rows: Mapping[bytes, int]


# -- out ---------------------------------------------------------------------------------------


def document_record(row: DocumentRow, root: int | None, vector_rows: Mapping[bytes, int]) -> Json:
    """A document as a JSON object; `root` is its root's number, `vector_rows` says where vectors are."""
    facts = row.facts
    return {
        "root": root,
        **_name("path", row.path),
        "sha256": facts.sha256.hex(),
        "size": facts.size,
        "mtime_ns": facts.mtime_ns,
        "inode": facts.inode,
        "checked_ns": facts.checked_ns,
        "format": row.format,
        "encoding": row.encoding,
        "language": row.language,
        "title": row.title,
        "metadata": dict(row.metadata),
        "replaced": row.replaced,
        "text": row.text,
        "passages": [
            {
                "start": passage.start,
                "end": passage.end,
                "lines": passage.lines,
                "page": passage.page,
                "heading": passage.heading,
                "tokens": passage.tokens,
                "unknown": passage.unknown,
                "windows": [[w.start, w.end, vector_rows[w.key]] for w in passage.windows],
            }
            for passage in row.passages
        ],
    }


def root_record(root: StoredRoot) -> Json:
    """A root as a JSON object."""
    return {**_name("path", root.path), **_name("file", root.file), "scan": dict(root.scan)}


def to_line(record: Json) -> bytes:
    """One line of JSON in UTF-8."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # metadata may hold what UTF-8 cannot
        return json.dumps(record).encode() + b"\n"


def _name(key: str, name: bytes) -> Json:
    """A path as text, and in base64 as well where it is no UTF-8."""
    try:
        return {key: name.decode()}
    except UnicodeDecodeError:
        shown = name.decode("utf-8", "backslashreplace")
        return {key: shown, f"{key}_b64": base64.b64encode(name).decode()}


# -- in ----------------------------------------------------------------------------------------


def from_line(line: bytes) -> object:
    """A JSON value; NaN, infinite numbers and keys that come twice are refused."""
    try:
        return json.loads(
            line.decode("utf-8"),
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"it is not JSON that can be read ({error})") from None


def read_document(value: object, roots: Sequence[StoredRoot], vectors: int) -> ReadRecord:
    """A document from a JSON object.

    Args:
        value: the object.
        roots: that it may belong to.
        vectors: how many there are.

    Raises:
        InvalidInput: something does not fit.
    """
    record = as_object(value, "the document", _DOCUMENT, {"path_b64"})
    root = record["root"]
    if root is not None:
        root = as_integer(root, "root", 0, len(roots) - 1)
    path = _read_name(record, "path")
    _check_path(path, None if root is None else roots[root])
    text = as_text(record["text"], "text")
    digest = as_digest(record["sha256"], "sha256")
    if root is None and digest != hashlib.sha256(text.encode()).digest():
        raise InvalidInput("sha256 is not that of the text")
    lines = 1 + sum(1 for _ in _LINE_END.finditer(text))
    vector_rows: dict[bytes, int] = {}
    passages = [
        _read_passage(passage, f"passage {n}", text, lines, vectors, vector_rows)
        for n, passage in enumerate(as_list(record["passages"], "passages"))
    ]
    row = DocumentRow(
        root_id=None,
        path=path,
        facts=FileFacts(
            digest,
            as_integer(record["size"], "size"),
            as_integer(record["mtime_ns"], "mtime_ns", -_MOST),
            as_integer(record["inode"], "inode", -_MOST),
            as_integer(record["checked_ns"], "checked_ns", -_MOST),
        ),
        format=as_text(record["format"], "format"),
        encoding=as_text(record["encoding"], "encoding"),
        language=as_text(record["language"], "language"),
        title=as_text(record["title"], "title"),
        metadata=_shallow(as_object(record["metadata"], "metadata")),
        replaced=as_integer(record["replaced"], "replaced"),
        text=text,
        passages=tuple(passages),
    )
    return ReadRecord(row, root, vector_rows)


def _read_passage(
    value: object, what: str, text: str, lines: int, vectors: int, vector_rows: dict[bytes, int]
) -> PassageRow:
    """A passage; the vectors' rows by key go into `vector_rows`."""
    record = as_object(value, what, _PASSAGE)
    start = as_integer(record["start"], f"{what}: start", 0, len(text))
    end = as_integer(record["end"], f"{what}: end", start + 1, len(text))
    tokens = as_integer(record["tokens"], f"{what}: tokens")
    windows = []
    for window in as_list(record["windows"], f"{what}: windows"):
        numbers = as_list(window, f"{what}: window", 3)
        first = as_integer(numbers[0], f"{what}: start of a window", start, end - 1)
        last = as_integer(numbers[1], f"{what}: end of a window", first + 1, end)
        row = as_integer(numbers[2], f"{what}: row of a vector", 0, vectors - 1)
        key = hashlib.sha256(text[first:last].encode()).digest()
        if vector_rows.setdefault(key, row) != row:
            raise InvalidInput(f"{what}: rows {vector_rows[key]} and {row} are of the same text")
        windows.append(WindowRow(first, last, key))
    if not windows:
        raise InvalidInput(f"{what} has no windows")
    page = record["page"]
    return PassageRow(
        start=start,
        end=end,
        lines=None if record["lines"] is None else _read_lines(record["lines"], what, lines),
        page=None if page is None else as_integer(page, f"{what}: page", 1),
        heading=tuple(
            as_text(part, f"{what}: heading")
            for part in as_list(record["heading"], f"{what}: heading")
        ),
        tokens=tokens,
        unknown=as_integer(record["unknown"], f"{what}: unknown", 0, tokens),
        text=text[start:end],
        windows=tuple(windows),
    )


def _read_lines(value: object, what: str, lines: int) -> tuple[int, int]:
    numbers = as_list(value, f"{what}: lines", 2)
    first = as_integer(numbers[0], f"{what}: first line", 1, lines)
    return first, as_integer(numbers[1], f"{what}: last line", first, lines)


def read_root(value: object, what: str) -> StoredRoot:
    """A root from a JSON object; it has no id yet."""
    record = as_object(value, what, frozenset({"path", "file", "scan"}), {"path_b64", "file_b64"})
    path, file = _read_name(record, "path"), _read_name(record, "file")
    absolute = posixpath.isabs(path) or ntpath.isabs(path)
    if not absolute or b"\0" in path + file or b"/" in file or file in (b".", b".."):
        raise InvalidInput(f"{what} is not the path of a folder and the name of a file")
    return StoredRoot(0, path, file, as_config(record["scan"], ScanConfig, what).to_json())


def read_chunking(value: object) -> Json:
    """How documents were cut, as a JSON object that `ChunkingConfig` takes."""
    return as_config(value, ChunkingConfig, "chunking").to_json()


def _read_name(record: Json, key: str) -> bytes:
    """A path; where there is base64, that is what counts, and the text has to be what it looks like."""
    shown = as_text(record[key], key)
    if f"{key}_b64" not in record:
        return shown.encode()
    try:
        name = base64.b64decode(as_text(record[f"{key}_b64"], f"{key}_b64"), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{key}_b64 is not base64") from None
    if _name(key, name) != {part: record[part] for part in (key, f"{key}_b64")}:
        raise InvalidInput(f"{key} and {key}_b64 are not the same, or {key} alone would do")
    return name


def _check_path(path: bytes, root: StoredRoot | None) -> None:
    """A text needs an id; a file's path may not lead out of its root."""
    if root is None:
        if not path.strip():
            raise InvalidInput("path is blank; a text needs an id")
    elif root.file:
        if path != root.file:
            raise InvalidInput("path is not the root's only file")
    elif b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise InvalidInput("path is not one inside its root")


# -- values ------------------------------------------------------------------------------------


def as_object(
    value: object, what: str, keys: frozenset[str] | None = None, optional: set[str] | None = None
) -> Json:
    """An object with exactly these keys, some of which may be left out; any keys for None."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} is {_short(value)}; an object is due")
    if keys is not None:
        if missing := sorted(keys - value.keys()):
            raise InvalidInput(f"{what} lacks {', '.join(missing)}")
        if unknown := sorted(value.keys() - keys - (optional or set())):
            raise InvalidInput(f"{what} has unknown keys: {_short(', '.join(unknown))}")
    return value


def as_list(value: object, what: str, length: int | None = None) -> list[Any]:
    """A list, of that length."""
    if not isinstance(value, list) or (length is not None and len(value) != length):
        due = "a list" if length is None else f"a list of {length}"
        raise InvalidInput(f"{what} is {_short(value)}; {due} is due")
    return value


def as_integer(value: object, what: str, low: int = 0, high: int = _MOST) -> int:
    """A whole number in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise InvalidInput(f"{what} is {_short(value)}; a whole number from {low} to {high} is due")
    return value


def as_text(value: object, what: str) -> str:
    """A string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is {_short(value)}; a string is due")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} holds a lone surrogate") from None
    return value


def as_digest(value: object, what: str) -> bytes:
    """A SHA-256 in hexadecimal."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise InvalidInput(f"{what} is {_short(value)}; 64 hexadecimal digits are due")
    return bytes.fromhex(value)


def as_config(value: object, kind: type[C], what: str) -> C:
    """A configuration, its values of the same types as the defaults."""
    default = kind().to_json()
    record = as_object(value, what, frozenset(), set(default))
    for key, given in record.items():
        usual = default[key]
        fits = (
            given is None or isinstance(given, str) if usual is None else type(given) is type(usual)
        )
        if isinstance(given, list):
            fits = fits and all(isinstance(part, str) for part in given)
        if not fits:
            raise InvalidInput(f"{what}: {key} is {_short(given)}; one like {usual!r} is due")
    try:
        return kind.from_json(record)
    except ValueError as error:  # InvalidInput is one
        raise InvalidInput(f"{what}: {error}") from None


def _shallow(metadata: Json) -> Json:
    level: list[Any] = [metadata]
    for _ in range(_DEEPEST):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return metadata
    raise InvalidInput(f"metadata is nested in more than {_DEEPEST} levels")


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise InvalidInput(f"{number[:_SHOWN]} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise InvalidInput("a key comes twice in an object")
    return record
