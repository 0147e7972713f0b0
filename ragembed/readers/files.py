"""One file: its bytes, read with care, and the document they hold."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, replace

from ragembed.config import ScanConfig
from ragembed.errors import ReadError
from ragembed.readers.clean import clean, display
from ragembed.readers.decode import decode
from ragembed.readers.formats import format_of, unsupported_extension
from ragembed.readers.sandbox import Sandbox
from ragembed.readers.scan import os_cause
from ragembed.readers.structure import parse_blocks
from ragembed.types import Document

_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
)
_ATTEMPTS = 3
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file's bytes and what identified it while they were read."""

    data: bytes
    sha256: bytes
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file as a document; `sha256` is of the raw bytes."""

    document: Document
    sha256: bytes
    size: int
    mtime_ns: int
    inode: int


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _check_inside(root: bytes, full: bytes, descriptor: int) -> None:
    """Refuse a file that a swapped parent folder has led us to."""
    try:
        real = os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:
        real = os.path.realpath(full)
    top = os.path.realpath(root)
    if real != full and not real.startswith(top.rstrip(os.fsencode(os.sep)) + os.fsencode(os.sep)):
        raise ReadError(
            "outside_root", f"the file is really at {display(real)}, which is outside the root"
        )


def _read_open(descriptor: int, limit: int) -> tuple[bytes, os.stat_result] | None:
    """The bytes of an open file, or None if it changed meanwhile."""
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise ReadError("not_regular", "it is not a regular file")
    pieces: list[bytes] = []
    total = 0
    while piece := os.read(descriptor, _PIECE):
        total += len(piece)
        if total > limit:
            raise ReadError(
                "too_big", f"more than --max-file-size ({limit:,} bytes) can be read from it"
            )
        pieces.append(piece)
    after = os.fstat(descriptor)
    return (b"".join(pieces), after) if _identity(before) == _identity(after) else None


def read_bytes(root: str, path: bytes, config: ScanConfig) -> RawFile:
    """Read the file at `path` below `root`.

    Raises `ReadError`: "permission", "vanished", "io", "symlink", "outside_root", "not_regular",
    "too_big", or "unstable" for a file that changed during each of three attempts.
    """
    top = os.path.realpath(os.fsencode(root))
    if not os.path.isdir(top):  # a single file is its own root
        top = os.path.dirname(top)
    full = os.path.join(top, path)
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(full, _FLAGS)
        except OSError as error:
            if os.path.islink(full):
                raise ReadError("symlink", "a symbolic link; links are not followed") from None
            code, cause = os_cause(error)
            raise ReadError(code, cause) from error
        try:
            _check_inside(top, full, descriptor)
            outcome = _read_open(descriptor, config.max_file_size)
        except OSError as error:
            code, cause = os_cause(error)
            raise ReadError(code, cause) from error
        finally:
            os.close(descriptor)
        if outcome is not None:
            data, status = outcome
            digest = hashlib.sha256(data).digest()
            return RawFile(data, digest, len(data), status.st_mtime_ns, status.st_ino)
    raise ReadError("unstable", f"it changed while it was read, {_ATTEMPTS} times in a row")


def extract(raw: RawFile, path: bytes, config: ScanConfig, sandbox: Sandbox) -> Document:
    """The document that a file's bytes hold; PDF and HTML are parsed in `sandbox`.

    Raises `ReadError`: "unsupported", "empty", "binary", "encoding_unknown", and for PDF and HTML
    also "encrypted", "broken", "no_text", "too_big" and "timeout".
    """
    if extension := unsupported_extension(path):
        raise ReadError("unsupported", f".{extension} files cannot be read")
    if not raw.data:
        raise ReadError("empty", "the file is empty")
    kind = format_of(path) or "text"
    if kind == "pdf" or kind == "html":
        document = sandbox.extract(kind, raw.data, config.encoding)
        if not document.text.strip():
            raise ReadError("empty", "the file holds no visible text")
        return replace(document, id=display(path))
    text, encoding = decode(raw.data, config.encoding)
    text, replaced = clean(text)
    if not text.strip():
        raise ReadError("empty", "the file holds nothing but blank space")
    blocks = parse_blocks(text, kind)
    return Document(
        id=display(path),
        text=text,
        title=next((block.title for block in blocks if block.level == 1), ""),
        format=kind,
        blocks=blocks,
        encoding=encoding,
        replaced=replaced,
    )


def read_file(
    root: str, path: bytes, config: ScanConfig, sandbox: Sandbox | None = None
) -> FileContent:
    """Read and extract one file; without a `sandbox`, one is started for it where needed."""
    raw = read_bytes(root, path, config)
    if sandbox is None:
        with Sandbox() as own:
            document = extract(raw, path, config, own)
    else:
        document = extract(raw, path, config, sandbox)
    return FileContent(document, raw.sha256, raw.size, raw.mtime_ns, raw.inode)
