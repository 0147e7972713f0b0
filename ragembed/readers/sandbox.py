"""Untrusted PDF and HTML are parsed in a child process: a bad file costs one line in a report.

The child has bounds on memory and processor time, the parent bounds its wall clock and the size
of its answer. It is started when the first file needs it and kept for the next ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import IO, Any, Literal

from ragembed.errors import ReadError
from ragembed.readers.worker import read_frame, write_frame
from ragembed.types import Block, Document

_SECONDS = 60.0
_LARGEST_ANSWER = 512 << 20
_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from ragembed.readers.worker import main; main()"
)


def _search_path() -> list[str]:
    """The parent's module path without the working directory, where anybody's files may lie.

    The folder that holds this package comes last: it may be the working directory itself, and
    must not hide anything then.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:
        here = ""  # removed meanwhile: nothing can be loaded from it
    kept = [
        path
        for path in sys.path
        if os.path.isabs(path) and os.path.realpath(path) != here and path != package
    ]
    return [*kept, package]


def _signal_name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


class Sandbox:
    """Parses PDF and HTML in a child process; usable from one thread at a time.

    >>> with Sandbox() as sandbox:
    ...     sandbox.extract("html", b"<p>Hello", None).text
    'Hello'
    """

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def extract(self, kind: Literal["pdf", "html"], data: bytes, encoding: str | None) -> Document:
        """The document in `data`, with an empty `id`.

        Raises `ReadError`: what the parser says ("encrypted", "no_text", ...), "timeout" after 60
        seconds, and "broken" if the child failed, crashed or answered nonsense.
        """
        with self._lock:
            header, text = self._ask({"kind": kind, "encoding": encoding}, data)
        if "code" in header:
            raise ReadError(str(header["code"]), str(header["message"]))
        try:
            return _document(kind, header, text.decode("utf-8"))
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise ReadError("broken", "the parser's answer makes no sense") from error

    def close(self) -> None:
        """End the child, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, json.dumps(_search_path())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=os.path.abspath(os.sep),
            )
        return self._process

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        process = self._start()
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise ReadError("broken", "the parser's process has no pipes")
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()  # ends the blocking read or write below

        clock = threading.Timer(self._seconds, expire)
        clock.daemon = True
        clock.start()
        try:
            write_frame(stdin, request, data)
            return read_frame(stdout, _LARGEST_ANSWER)
        except (OSError, EOFError) as error:
            status = process.wait()
            self.close()
            if expired.is_set():
                raise ReadError(
                    "timeout", f"parsing it took longer than {self._seconds:g} seconds"
                ) from error
            how = f"was ended by {_signal_name(status)}" if status < 0 else f"exited with {status}"
            raise ReadError("broken", f"the parser's process {how}") from error
        except ValueError as error:
            self.close()
            raise ReadError("broken", f"the parser's answer cannot be used: {error}") from error
        except BaseException:
            self.close()  # interrupted between question and answer: the next one must start anew
            raise
        finally:
            clock.cancel()
            if expired.is_set():
                self.close()  # killed, even if the answer came in the last moment


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:
        return  # unsent bytes for a child that is gone


def _document(kind: Literal["pdf", "html"], header: dict[str, Any], text: str) -> Document:
    blocks = tuple(
        Block(int(start), int(end), block_kind, int(level), str(title))
        for start, end, block_kind, level, title in header["blocks"]
    )
    edges = [0, *(edge for block in blocks for edge in (block.start, block.end)), len(text)]
    if edges != sorted(edges):
        raise ValueError("blocks overlap or leave the text")
    return Document(
        id="",
        text=text,
        title=str(header["title"]),
        metadata=header["metadata"],
        format=kind,
        blocks=blocks,
        pages=tuple(int(page) for page in header["pages"]),
        encoding=str(header["encoding"]),
        replaced=int(header["replaced"]),
    )
