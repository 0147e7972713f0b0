"""The child process of `sandbox`: parses untrusted PDF and HTML under limits.

A frame is two big-endian 4-byte lengths, a JSON header, and raw bytes. Requests carry the kind,
the encoding and the file; answers carry the document's fields and its text in UTF-8, or an error.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import struct
import sys
import threading
import time
from typing import IO, Any

from ragembed.errors import ReadError
from ragembed.types import Document

FRAME = struct.Struct(">II")
MEMORY_BYTES = 2 << 30
CPU_SECONDS = 60


def write_frame(stream: IO[bytes], header: dict[str, Any], body: bytes) -> None:
    """Write one frame."""
    encoded = json.dumps(header).encode()
    stream.write(FRAME.pack(len(encoded), len(body)))
    stream.write(encoded)
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes], most: int) -> tuple[dict[str, Any], bytes]:
    """Read one frame of at most `most` bytes; raises `EOFError` where it ends early, `ValueError`
    where it is no frame."""
    sizes = stream.read(FRAME.size)
    if len(sizes) < FRAME.size:
        raise EOFError
    header_size, body_size = FRAME.unpack(sizes)
    if header_size + body_size > most:
        raise ValueError(f"a frame of {header_size + body_size:,} bytes is over {most:,}")
    encoded = stream.read(header_size)
    body = stream.read(body_size)
    if len(encoded) < header_size or len(body) < body_size:
        raise EOFError
    header = json.loads(encoded)
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    return header, body


def _limit(seconds: int) -> None:
    """Bound memory, and the processor time from now on."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return  # not there on Windows; the parent's clock still holds
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = int(time.process_time()) + 1 + seconds
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    except (ValueError, OSError):
        return  # macOS refuses RLIMIT_AS


def _answer(document: Document) -> tuple[dict[str, Any], bytes]:
    header = {
        "title": document.title,
        "metadata": dict(document.metadata),
        "blocks": [[b.start, b.end, b.kind, b.level, b.title] for b in document.blocks],
        "pages": list(document.pages),
        "encoding": document.encoding,
        "replaced": document.replaced,
    }
    return header, document.text.encode("utf-8")


def _parse(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        # Imported here so that each library is loaded only when a file of its kind is met.
        if header["kind"] == "pdf":
            return _answer(importlib.import_module("ragembed.readers.pdf").extract_pdf(data))
        html = importlib.import_module("ragembed.readers.html")
        return _answer(html.extract_html(data, header["encoding"]))
    except ReadError as error:
        return {"code": error.code, "message": str(error)}, b""
    except MemoryError:
        limit = f"{MEMORY_BYTES >> 30} GiB"
        return {"code": "broken", "message": f"parsing it takes more than {limit} of memory"}, b""
    except Exception as error:  # whatever a parser raises on hostile bytes is that file's fault
        cause = f"the parser failed with {type(error).__name__}"
        return {"code": "broken", "message": cause}, b""


def _receive(stream: IO[bytes], requests: queue.Queue[tuple[dict[str, Any], bytes]]) -> None:
    """Wait for requests in a thread of its own, so that the parent's end is noticed at once."""
    try:
        while True:
            requests.put(read_frame(stream, 1 << 32))
    except (EOFError, ValueError, OSError):
        os._exit(0)


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints must not get between the frames
    requests: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        header, data = requests.get()
        _limit(CPU_SECONDS)
        try:
            write_frame(answers, *_parse(header, data))
        except OSError:
            os._exit(0)  # the parent is gone
