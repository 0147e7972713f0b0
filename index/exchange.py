"""The three files of an export: what each holds, and how each is written and read.

    index.json        what it is: format, version, model, chunking, roots, counts
    documents.jsonl   one document a line: see records.py
    vectors.npy       (n, d) unit vectors in the model's precision; windows name them by row

What is read is checked, and what does not fit raises InvalidInput with file, place and reason.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ragembed.config import VectorPrecision
from ragembed.errors import InvalidInput
from ragembed.index import records
from ragembed.index.copying import write_file
from ragembed.index.records import ReadRecord, as_integer, as_object, as_text
from ragembed.index.rows import StoredModel, StoredRoot
from ragembed.index.store import stored_dtype
from ragembed.index.transfer import TransferredDocument
from ragembed.index.vectors import check_vectors

FORMAT = "ragembed-export"
VERSION = 1
HEADER, DOCUMENTS, VECTORS = "index.json", "documents.jsonl", "vectors.npy"
_LONGEST_HEADER = 1 << 26  # bytes
_LONGEST_LINE = 1 << 30
_MOST_DIMENSIONS = 1 << 16
_VECTORS_AT_ONCE = 8192
_COUNTS = ("documents", "passages", "windows", "vectors")
_KEYS = frozenset({"format", "version", "model", "chunking", "roots", *_COUNTS})
_MODEL_KEYS = frozenset({"name", "fingerprint", "dimension", "precision"})


@dataclass(frozen=True, slots=True)
class Header:
    """What index.json says; the ids of model and roots mean nothing.

    `counts` are documents, passages, windows, vectors.
    """

    model: StoredModel | None
    chunking: dict[str, Any] | None
    roots: tuple[StoredRoot, ...]
    counts: tuple[int, int, int, int]


class Table:
    """Numbers by key, on disk until it is closed."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=OFF")
        self._connection.execute(
            "CREATE TABLE number (key BLOB PRIMARY KEY, value INTEGER) WITHOUT ROWID"
        )
        self._connection.execute("BEGIN")

    def put(self, key: bytes, value: int) -> int:
        """The number of a key: this one if it had none."""
        self._connection.execute("INSERT OR IGNORE INTO number VALUES (?, ?)", (key, value))
        (found,) = self._connection.execute(
            "SELECT value FROM number WHERE key = ?", (key,)
        ).fetchone()
        return int(found)

    def close(self) -> None:
        """Forget all."""
        self._connection.close()


# -- out ---------------------------------------------------------------------------------------


def write_header(file: Path, header: Header) -> None:
    """Write index.json, durably."""
    model = header.model
    value = {
        "format": FORMAT,
        "version": VERSION,
        "model": None
        if model is None
        else {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "dimension": model.dimension,
            "precision": model.precision,
        },
        "chunking": header.chunking,
        "roots": [records.root_record(root) for root in header.roots],
        **dict(zip(_COUNTS, header.counts, strict=True)),
    }
    write_file(file, json.dumps(value, indent=2).encode() + b"\n")


class VectorFile:
    """vectors.npy, to which vectors are added as they come; each key has one row."""

    def __init__(self, file: BinaryIO, model: StoredModel | None) -> None:
        self._file = file
        self._dtype = np.dtype(stored_dtype(model.precision if model else "float16"))
        self._dimension = model.dimension if model else 0
        self._rows = Table()
        self.count = 0
        file.write(self._header())

    def put(self, document: TransferredDocument) -> dict[bytes, int]:
        """Add a document's vectors; returns their rows by key."""
        rows = {}
        for key, vector in document.vectors.items():
            row = self._rows.put(key, self.count)
            if row == self.count:
                self._file.write(vector.astype(self._dtype).tobytes())
                self.count += 1
            rows[key] = row
        return rows

    def finish(self) -> None:
        """Write down how many there are."""
        self._file.seek(0)
        self._file.write(self._header())

    def _header(self) -> bytes:
        """NumPy's format 1.0, of 128 bytes whatever the number of rows."""
        said = (
            f"{{'descr': '{self._dtype.str}', 'fortran_order': False, "
            f"'shape': ({self.count}, {self._dimension}), }}"
        )
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + said.ljust(117).encode() + b"\n"

    def close(self) -> None:
        """Forget the keys."""
        self._rows.close()


# -- in ----------------------------------------------------------------------------------------


def read_header(file: Path) -> Header:
    try:
        if file.stat().st_size > _LONGEST_HEADER:
            raise InvalidInput(
                f"{file} has over {_LONGEST_HEADER:,} bytes; no export has that many"
            )
        content = file.read_bytes()
    except FileNotFoundError:
        raise InvalidInput(f"{file.parent} is no export: there is no {file.name} in it") from None
    try:
        return _header_of(records.from_line(content))
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error}") from None


def _header_of(value: object) -> Header:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InvalidInput(f"it does not say that its format is {FORMAT}")
    if value.get("version") != VERSION:
        raise InvalidInput(
            f"its version is {value.get('version')!r:.20} and this ragembed reads {VERSION}: export it "
            "again, or upgrade ragembed"
        )
    header = as_object(value, "the file", _KEYS)
    given = header["model"]
    model = None
    if given is not None:
        given = as_object(given, "model", _MODEL_KEYS)
        if given["precision"] not in ("float16", "float32"):
            raise InvalidInput("the model's precision is neither float16 nor float32")
        model = StoredModel(
            0,
            as_text(given["name"], "the model's name"),
            as_text(given["fingerprint"], "the model's fingerprint"),
            as_integer(given["dimension"], "the model's dimension", 1, _MOST_DIMENSIONS),
            cast(VectorPrecision, given["precision"]),
        )
    documents, passages, windows, vectors = (as_integer(header[name], name) for name in _COUNTS)
    if model is None and documents + vectors:
        raise InvalidInput("there are documents but no model")
    chunking = header["chunking"]
    if model is not None or chunking is not None:
        chunking = records.read_chunking(chunking)
    roots = tuple(
        records.read_root(root, f"root {number}")
        for number, root in enumerate(records.as_list(header["roots"], "roots"))
    )
    if len({(root.path, root.file) for root in roots}) < len(roots):
        raise InvalidInput("a root comes twice")
    return Header(model, chunking, roots, (documents, passages, windows, vectors))


def read_vectors(file: Path, header: Header) -> NDArray[Any]:
    """The file mapped into memory, (n, d); each vector has been looked at."""
    rows, model = header.counts[3], header.model
    due = np.dtype(stored_dtype(model.precision if model else "float16"))
    shape = (rows, model.dimension if model else 0)
    try:
        # Never np.load, which would unpack archives; and no objects can be mapped.
        array = np.lib.format.open_memmap(str(file), mode="r")
    except FileNotFoundError:
        raise InvalidInput(f"{file.parent} is no export: there is no {file.name} in it") from None
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python, and raises what that raises
        raise InvalidInput(f"{file} is no array that can be read ({error})") from None
    if array.dtype != due or array.shape != shape:
        raise InvalidInput(
            f"{file} holds {array.dtype} of shape {array.shape}; {due} of shape {shape} is due"
        )
    for first in range(0, rows, _VECTORS_AT_ONCE):
        try:
            part = np.asarray(array[first : first + _VECTORS_AT_ONCE], dtype=np.float32)
            check_vectors(part, shape[1])
        except InvalidInput as error:
            raise InvalidInput(f"{file}, from row {first} on: {error}") from None
    return array


def read_documents(file: Path, header: Header) -> Iterator[ReadRecord]:
    """The documents of all lines; raises InvalidInput, which names the line."""
    try:
        stream = open(file, "rb")
    except FileNotFoundError:
        raise InvalidInput(f"{file.parent} is no export: there is no {file.name} in it") from None
    with stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            try:
                value = records.from_line(line)
                yield records.read_document(value, header.roots, header.counts[3])
            except InvalidInput as error:
                raise wrong(file, number, str(error)) from None
            number += 1


def wrong(file: Path, number: int, what: str) -> InvalidInput:
    """The error for a line; `number` counts from 0."""
    return InvalidInput(f"{file}, line {number + 1}: {what}")
