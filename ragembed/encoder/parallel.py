"""ParallelEncoder: the same checkpoint in one process per device, texts shared out between them.

The parent loads neither torch nor weights: it cuts the texts into pieces, sends them as JSON, and
puts the float32 bytes that come back into place. Nothing is pickled but the arguments a process is
started with, which are strings, numbers and its end of a pipe.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import signal
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ragembed.config import DType
from ragembed.encoder.checks import checked
from ragembed.encoder.parallel_worker import RAISED, Settings, work
from ragembed.errors import EncodingFailed, InvalidInput, ModelError, RagembedError
from ragembed.progress import bar
from ragembed.tokenizer import HuggingFaceTokenizer

if TYPE_CHECKING:
    from ragembed.encoder.inference import LongText

PIECE_CHARACTERS = 200_000  # about 50,000 tokens of English: seconds on a CPU, a batch on a GPU
_AHEAD = 2  # pieces a worker has at a time, so that it never waits for the next one
_SECONDS_TO_END = 5.0
_NUMBER = re.compile(r"\btext (\d+)( of \d+)?\b")


@dataclass(slots=True)
class _Worker:
    device: str
    process: BaseProcess
    connection: Connection
    under_way: deque[tuple[int, int]] = field(default_factory=deque)  # pieces without an answer yet


class ParallelEncoder:
    """`PoolingEncoder` on several devices at once; close it, or use it in a `with` block.

    Processes are started by "spawn", which imports the main script again: a script needs
    `if __name__ == "__main__":` around what it does. Calls from several threads take turns. When a
    worker dies, or a call is interrupted (Ctrl-C), all workers are ended and the encoder is closed.
    When this process dies, the workers end by themselves.

    Attributes:
        name: what the weights were asked for as.
        dimension: d, the length of each vector.
        fingerprint: that of the `PoolingEncoder` in each worker.
        max_tokens: most tokens of a document piece, without specials and prompt.
        prompts: text put in front of a `query` or a `document`, where the checkpoint has one.
        tokenizer: the checkpoint's own tokenizer.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        devices: Sequence[str],
        dtype: DType = "auto",
        batch_tokens: int = 0,
        truncate_dim: int = 0,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        """Start the workers and wait until all have loaded the model.

        Args:
            model: a local folder, or a model's name, as for `PoolingEncoder.from_pretrained`.
            devices: one worker each, such as ("cuda:0", "cuda:1"). The cores are shared equally by
                workers on "cpu".
            dtype: of the matrix products; "auto" is bfloat16 where a device has it.
            batch_tokens: most tokens in one batch; 0 picks a figure for each device.
            truncate_dim: keep so many leading dimensions (for Matryoshka models); 0 keeps all.
            prompts: for `query` and `document`, in place of the checkpoint's own.

        Raises:
            InvalidInput: no devices, or a device or dimension that is not there.
            ModelNotFound, ModelError: as for `PoolingEncoder.from_pretrained`.
            EncodingFailed: a worker ended before it was ready.
        """
        if isinstance(devices, str) or not devices:
            raise InvalidInput(f"devices is {devices!r}; give a list such as ['cuda:0', 'cuda:1']")
        self.name = str(model)
        self._lock = threading.RLock()
        self._workers: list[_Worker] = []
        try:
            for device in devices:
                self._start(
                    Settings(
                        model=self.name,
                        device=device,
                        dtype=dtype,
                        batch_tokens=batch_tokens,
                        truncate_dim=truncate_dim,
                        prompts=None if prompts is None else dict(prompts),
                        workers=len(devices),
                    )
                )
            greetings = [self._greeting(worker) for worker in self._workers]
        except BaseException:
            self._end()
            raise
        first, tokenizer = greetings[0]
        self.dimension = int(first["dimension"])
        self.fingerprint = str(first["fingerprint"])
        self.max_tokens = int(first["max_tokens"])
        self.prompts: dict[str, str] = first["prompts"]
        self.tokenizer = HuggingFaceTokenizer(
            tokenizer, first["tokenizer"], lower_case=first["lower_case"]
        )
        for worker, (greeting, _) in zip(self._workers, greetings, strict=True):
            if (other := greeting["fingerprint"]) != self.fingerprint:
                self._end()
                raise ModelError(
                    f"the worker on {worker.device} has loaded other weights ({other[:12]}) than "
                    f"the first ({self.fingerprint[:12]}); see whether {self.name} was being changed"
                )

    def __enter__(self) -> ParallelEncoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; closing twice does nothing."""
        with self._lock:
            self._end()

    def encode(
        self,
        texts: Iterable[str],
        *,
        prompt: str = "",
        long: LongText = "error",
        normalize: bool = True,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Vectors of texts without the checkpoint's prompts: float32, shape (n, d), unit length.

        Args:
            texts: any iterable of strings, none of them blank.
            prompt: put in front of each.
            long: what to do with a text the model cannot read whole, see `PoolingEncoder.encode`.
            normalize: False gives the vectors as the checkpoint's modules make them.
            progress: draw a bar on stderr when it is a terminal.

        Raises:
            InvalidInput: a blank text, one that is too long under `long="error"`, or the encoder
                is closed.
            EncodingFailed: the network gave a vector that is not finite, or has no direction; or a
                worker died.
        """
        options = {"prompt": prompt, "long": long, "normalize": normalize}
        listed = list(checked(texts))
        with self._lock:
            if not self._workers:
                raise InvalidInput("the encoder was closed; make another one")
            try:
                return self._share_out(listed, options, progress)
            except RagembedError:
                raise  # the workers are idle again, or ended
            except BaseException:
                self._end()  # interrupted: answers are under way that belong to no question
                raise

    def encode_query(
        self, texts: Iterable[str], *, long: LongText = "mean", progress: bool = False
    ) -> NDArray[np.float32]:
        """Vectors of queries, with the checkpoint's query prompt; a long one is averaged."""
        prompt = self.prompts.get("query", "")
        return self.encode(texts, prompt=prompt, long=long, progress=progress)

    def encode_document(
        self, texts: Iterable[str], *, long: LongText = "error", progress: bool = False
    ) -> NDArray[np.float32]:
        """Vectors of document pieces, with the checkpoint's prompt; otherwise as `encode`."""
        prompt = self.prompts.get("document", "")
        return self.encode(texts, prompt=prompt, long=long, progress=progress)

    def _share_out(
        self, texts: list[str], options: Mapping[str, object], progress: bool
    ) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        errors: list[tuple[int, RagembedError]] = []
        waiting = deque(cut([len(text) for text in texts], len(self._workers), PIECE_CHARACTERS))
        with bar("encoding", len(texts), shown=progress) as advance:
            while True:
                for depth in range(1, _AHEAD + 1):
                    for worker in self._workers:
                        if waiting and len(worker.under_way) < depth:
                            self._send(worker, waiting.popleft(), texts, options)
                busy = [worker for worker in self._workers if worker.under_way]
                if not busy:
                    break
                ready = wait([worker.connection for worker in busy])
                for worker in busy:
                    if worker.connection not in ready:
                        continue
                    first, last = worker.under_way[0]
                    header, body = self._receive(worker)
                    worker.under_way.popleft()
                    if "error" in header:
                        errors.append((first, _error(header, first, len(texts))))
                        waiting.clear()  # all pieces before this one are done or under way
                    else:
                        rows = np.frombuffer(body, dtype=np.float32)
                        vectors[first:last] = rows.reshape(last - first, self.dimension)
                        advance(last - first)
        if errors:
            raise min(errors, key=lambda error: error[0])[1]
        return vectors

    def _start(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work,
            args=(theirs, settings),
            name=f"ragembed-{settings.device}",
            daemon=True,
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # the worker has its own; with ours open its end would go unnoticed
        self._workers.append(_Worker(settings.device, process, ours))

    def _greeting(self, worker: _Worker) -> tuple[Mapping[str, Any], bytes]:
        header, body = self._receive(worker)
        if "error" in header:
            raise _error(header, 0, 0)
        return header, body

    def _send(
        self,
        worker: _Worker,
        piece: tuple[int, int],
        texts: list[str],
        options: Mapping[str, object],
    ) -> None:
        first, last = piece
        worker.under_way.append(piece)
        request = {**options, "texts": texts[first:last]}
        try:
            worker.connection.send_bytes(json.dumps(request).encode())
        except OSError:
            self._died(worker)

    def _receive(self, worker: _Worker) -> tuple[Mapping[str, Any], bytes]:
        try:
            header: Mapping[str, Any] = json.loads(worker.connection.recv_bytes())
            return header, worker.connection.recv_bytes()
        except (EOFError, OSError):
            self._died(worker)

    def _died(self, worker: _Worker) -> NoReturn:
        """Say how a worker ended; the others are ended as well."""
        worker.process.join(_SECONDS_TO_END)
        code = worker.process.exitcode
        if worker.under_way:
            first, last = worker.under_way[0][0] + 1, worker.under_way[-1][1]
            when, remedy = f"while it had texts {first} to {last}", "see whether memory ran out"
        else:
            when, remedy = "before it was ready", 'a script needs `if __name__ == "__main__":`'
        self._end()
        raise EncodingFailed(
            f"the worker on {worker.device} ended with exit code {code}{_signal(code)} {when}; "
            f"{remedy}, and make another encoder"
        )

    def _end(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.connection.close()  # the worker ends when it notices
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_SECONDS_TO_END)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()


def cut(lengths: Sequence[int], workers: int, most: int) -> list[tuple[int, int]]:
    """Neighbouring texts in pieces of about equal length, as many for each worker.

    Args:
        lengths: characters of each text, above 0.
        workers: how many share the pieces.
        most: characters of a piece, which the last text of each may exceed.

    Returns:
        First and last + 1 of each piece; together they are 0..n.

    >>> cut([5, 5, 5, 5, 90, 5], workers=2, most=1000)
    [(0, 5), (5, 6)]
    >>> cut([10] * 6, workers=2, most=20)
    [(0, 2), (2, 3), (3, 5), (5, 6)]
    """
    total = sum(lengths)
    count = workers * math.ceil(max(1, total / most) / workers)
    pieces = []
    start, done = 0, 0
    for n, length in enumerate(lengths):
        done += length
        # Ends where this text carries the sum over the next multiple of total / count.
        if done * count // total > (done - length) * count // total:
            pieces.append((start, n + 1))
            start = n + 1
    return pieces


def _error(header: Mapping[str, Any], first: int, total: int) -> RagembedError:
    """A worker's error, with its text's number in the caller's list in place of the piece's."""

    def renumber(found: re.Match[str]) -> str:
        return f"text {int(found[1]) + first}{f' of {total}' if found[2] else ''}"

    kinds: dict[str, type[RagembedError]] = {kind.__name__: kind for kind in RAISED}
    return kinds[header["error"]](_NUMBER.sub(renumber, str(header["message"]), count=1))


def _signal(code: int | None) -> str:
    try:
        return f" ({signal.Signals(-code).name})" if code is not None and code < 0 else ""
    except ValueError:
        return ""
