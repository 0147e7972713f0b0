"""The worker process of `parallel`: one `PoolingEncoder` that answers until the pipe ends.

Every message is one of bytes. The worker begins with a greeting: a JSON header and the bytes of
its `tokenizer.json`. A request is JSON, the arguments of `PoolingEncoder.encode`. An answer is a
JSON header and float32 bytes; a header with `error` names the class and the message.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ragembed.config import DType
from ragembed.encoder.resources import limit_threads
from ragembed.errors import EncodingFailed, InvalidInput, ModelError, ModelNotFound, StorageError

if TYPE_CHECKING:
    from ragembed.encoder.model import PoolingEncoder

# What an encoder raises on purpose, and the parent raises again; all take a message alone.
RAISED = (InvalidInput, ModelNotFound, ModelError, EncodingFailed, StorageError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The arguments of `PoolingEncoder.from_pretrained`; `workers` share this machine's cores."""

    model: str
    device: str
    dtype: DType
    batch_tokens: int
    truncate_dim: int
    prompts: dict[str, str] | None
    workers: int


def work(connection: Connection, settings: Settings) -> None:
    """Load the model, greet, and answer requests; the process ends with the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    # In a thread of its own, so that the parent's end is noticed in the middle of a piece.
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    try:
        encoder, greeting, tokenizer = _load(settings)
    except Exception as error:
        _answer(connection, _failure(error, settings.device), b"")
        return
    _answer(connection, greeting, tokenizer)
    while True:
        request = requests.get()
        try:
            vectors = encoder.encode(
                request["texts"],
                prompt=request["prompt"],
                long=request["long"],
                normalize=request["normalize"],
            )
        except Exception as error:
            _answer(connection, _failure(error, settings.device), b"")
        else:
            _answer(connection, {}, vectors.tobytes())


def _load(settings: Settings) -> tuple[PoolingEncoder, dict[str, Any], bytes]:
    """The encoder, what the parent is to know of it, and the bytes of its tokenizer."""
    # torch is loaded here and not above: the parent imports this module and does without.
    from ragembed.encoder.model import PoolingEncoder

    encoder = PoolingEncoder.from_pretrained(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        batch_tokens=settings.batch_tokens,
        truncate_dim=settings.truncate_dim,
        prompts=settings.prompts,
    )
    if encoder.device.type == "cpu":
        limit_threads(settings.workers)
    greeting = {
        "dimension": encoder.dimension,
        "fingerprint": encoder.fingerprint,
        "max_tokens": encoder.max_tokens,
        "prompts": encoder.prompts,
        "tokenizer": encoder.tokenizer.name,
        "lower_case": encoder.tokenizer.lower_case,
    }
    return encoder, greeting, encoder.tokenizer.data


def _receive(connection: Connection, requests: queue.Queue[dict[str, Any]]) -> None:
    try:
        while True:
            requests.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)  # the parent has closed the pipe or is gone


def _answer(connection: Connection, header: dict[str, Any], body: bytes) -> None:
    try:
        connection.send_bytes(json.dumps(header).encode())
        connection.send_bytes(body)
    except OSError:
        os._exit(0)  # the parent is gone


def _failure(error: Exception, device: str) -> dict[str, Any]:
    kind = next((kind for kind in RAISED if isinstance(error, kind)), None)
    if kind is not None:
        return {"error": kind.__name__, "message": str(error)}
    first = (str(error).splitlines() or [""])[0]
    message = (
        f"the worker on {device} failed with {type(error).__name__} ({first}); see whether a "
        "PoolingEncoder works there"
    )
    return {"error": EncodingFailed.__name__, "message": message}
