"""RemoteEmbedder: vectors from a server that speaks OpenAI's `POST /embeddings`.

Nothing in ragembed makes one by itself: texts leave the process only when the user has built it.
The format is OpenAI's API reference, "Create embeddings"; vLLM, llama.cpp, Ollama and Hugging
Face's text-embeddings-inference serve it as well.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragembed.encoder.checks import checked
from ragembed.encoder.remote_endpoint import Endpoint, error_message
from ragembed.errors import EncodingFailed, InvalidInput
from ragembed.pieces import well_formed
from ragembed.tokenizer import Tokenizer

MAX_BATCH_TEXTS = 2048  # what OpenAI takes in one request
# A float printed in JSON takes up to 25 bytes, indented about twice as many.
_BYTES_PER_VALUE = 64
_BYTES_AROUND = 1 << 20


class RemoteEmbedder:
    """An `Embedder` behind HTTP; close it, or use it in a `with` block.

    Requests that fail for a moment (408, 429, 5xx, no connection, no answer in time) are repeated,
    after waits that double, or as long as the server's `Retry-After` asks, up to a minute. No
    redirect is followed: key and texts go to `base_url` alone. Proxies come from the environment,
    but not for a server on this machine. Usable from several threads.

    Attributes:
        name: the model's name.
        dimension: d, the length of each vector.
        fingerprint: SHA-256 over identity, model, dimension and prompts.
        tokenizer: what documents are cut with; None stands for the default.

    >>> with RemoteEmbedder(
    ...     base_url="http://localhost:8080/v1", model="bge-small", dimension=384
    ... ) as embedder:
    ...     embedder
    RemoteEmbedder(base_url='http://localhost:8080/v1', model='bge-small', dimension=384)
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        dimension: int,
        send_dimensions: bool = False,
        api_key: str | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        batch_texts: int = 128,
        batch_characters: int = 400_000,
        timeout: float = 60.0,
        retries: int = 4,
        identity: str = "",
        tokenizer: Tokenizer | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is asked of the server before there is something to encode.

        Args:
            base_url: what `/embeddings` is appended to.
            model: the server's name for the model.
            dimension: length of the vectors; an answer of another length is an error.
            send_dimensions: ask the server for that length, where the model has several.
            api_key: sent as a bearer token, and kept out of messages, logs and repr.
            query_prompt: put in front of each query.
            document_prompt: put in front of each piece of a document.
            batch_texts: most texts in a request, at most 2,048.
            batch_characters: most characters in a request; a longer single text stands alone.
            timeout: seconds to connect, to the first part of an answer, between two parts, and
                from the first part to the last.
            retries: how often a request that failed for a moment is repeated.
            identity: stands for the server in the fingerprint; "" takes `base_url`. With one of
                your own, the server can move and the index stays valid.
            tokenizer: cuts documents; None takes `ragembed.budget_tokenizer()`.
            sleep: waits for so many seconds.

        Raises:
            InvalidInput: an argument that cannot be used.
        """
        _require(bool(model.strip()), "model is blank; give the server's name for it")
        _require(dimension >= 1, f"dimension is {dimension}; it must be at least 1")
        _require(
            1 <= batch_texts <= MAX_BATCH_TEXTS,
            f"batch_texts is {batch_texts}; it must lie between 1 and {MAX_BATCH_TEXTS:,}",
        )
        _require(
            batch_characters >= 1, f"batch_characters is {batch_characters}; it must be at least 1"
        )
        _require(timeout > 0, f"timeout is {timeout} seconds; it must be above 0")
        _require(retries >= 0, f"retries is {retries}; it must be at least 0")
        self._endpoint = Endpoint(
            base_url, api_key=api_key, timeout=timeout, retries=retries, sleep=sleep
        )
        self.name = model
        self.dimension = dimension
        self.tokenizer = tokenizer
        self.fingerprint = _fingerprint(
            identity or self._endpoint.url, model, dimension, query_prompt, document_prompt
        )
        self._send_dimensions = send_dimensions
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt
        self._batch_texts = batch_texts
        self._batch_characters = batch_characters

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(base_url={self._endpoint.url!r}, model={self.name!r}, "
            f"dimension={self.dimension})"
        )

    def __enter__(self) -> RemoteEmbedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; closing twice does nothing."""
        self._endpoint.close()

    def encode_query(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Queries as unit vectors, float32, shape (n, d), with the query prompt in front.

        Raises:
            InvalidInput: a blank text, or the embedder was closed.
            RemoteFailed: the server was not reached, refused, or answered something else.
            EncodingFailed: a vector that is zero or not finite.
        """
        return self._encode(texts, self._query_prompt)

    def encode_document(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Pieces of documents as unit vectors; otherwise as `encode_query`."""
        return self._encode(texts, self._document_prompt)

    def _encode(self, texts: Iterable[str], prompt: str) -> NDArray[np.float32]:
        texts = list(checked(texts))
        if self._endpoint.closed:
            raise InvalidInput("the embedder was closed; make another one")
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start, end in self._batches(texts, len(prompt)):
            purpose = f"for texts {start + 1} to {end} of {len(texts)}"
            answer = self._endpoint.post(
                "/embeddings",
                self._request([well_formed(prompt + text) for text in texts[start:end]]),
                most=_BYTES_PER_VALUE * (end - start) * self.dimension + _BYTES_AROUND,
                purpose=purpose,
            )
            found = self._parse(answer, end - start, purpose)
            vectors[start:end] = self._unit(found, start, len(texts))
        return vectors

    def _batches(self, texts: Sequence[str], prompt: int) -> Iterator[tuple[int, int]]:
        """Runs of texts that fit a request, as first and last + 1."""
        start, size = 0, 0
        for n, text in enumerate(texts):
            size += prompt + len(text)
            full = n - start == self._batch_texts or size > self._batch_characters
            if full and n > start:
                yield start, n
                start, size = n, prompt + len(text)
        if start < len(texts):
            yield start, len(texts)

    def _request(self, texts: list[str]) -> bytes:
        # base64 is what OpenAI's own client asks for: a quarter of the bytes, and exact.
        body: dict[str, Any] = {"model": self.name, "input": texts, "encoding_format": "base64"}
        if self._send_dimensions:
            body["dimensions"] = self.dimension
        return json.dumps(body, ensure_ascii=False).encode()

    def _parse(self, body: bytes, count: int, purpose: str) -> NDArray[np.float64]:
        """The vectors of an answer in the order of the texts: float64, shape (count, d)."""
        failed, clean = self._endpoint.failed, self._endpoint.clean
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            start = clean(body[:1000].decode("utf-8", "replace"))[:60]
            raise failed(
                f"answered {len(body):,} bytes that are not JSON {purpose} ({start!r}...); "
                "check base_url"
            ) from None
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            said = clean(error_message(body))
            raise failed(f"answered without a list 'data' {purpose} ({said}); check base_url")
        if len(rows) != count:
            raise failed(f"gave {len(rows)} vectors {purpose} where {count} are due; check model")
        vectors = np.empty((count, self.dimension), dtype=np.float64)
        missing = set(range(count))
        for row in rows:
            index = row.get("index") if isinstance(row, dict) else None
            if type(index) is not int or index not in missing:
                raise failed(
                    f"gave a vector of index {clean(repr(index))} {purpose} where each of 0 to "
                    f"{count - 1} is due once; check that the server speaks OpenAI's format"
                )
            missing.remove(index)
            values = _values(row.get("embedding"))
            if values is None:
                raise failed(
                    f"gave no vector at index {index} {purpose}; base64 of float32 or a list of "
                    "numbers is due, check that the server speaks OpenAI's format"
                )
            if len(values) != self.dimension:
                raise failed(
                    f"gave a vector of {len(values)} dimensions where {self.dimension} are due; say "
                    f"dimension={len(values)}, or send_dimensions=True if the model has several"
                )
            vectors[index] = values
        return vectors

    def _unit(self, vectors: NDArray[np.float64], first: int, total: int) -> NDArray[np.float32]:
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0))
        if len(bad):
            n = int(bad[0])
            kind = "zero" if largest[n, 0] == 0 else "not finite"
            raise EncodingFailed(
                f"the vector that {self._endpoint.url} gave for text {first + n + 1} of {total} is "
                f"{kind}; look at the model {self.name!r} on the server"
            )
        scaled = vectors / largest  # so that no square overflows or vanishes
        return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), dtype=np.float32)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidInput(message)


def _fingerprint(identity: str, model: str, dimension: int, query: str, document: str) -> str:
    parts = {
        "kind": "remote",
        "identity": identity,
        "model": model,
        "dimension": dimension,
        "prompts": {"query": query, "document": document},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _values(embedding: object) -> NDArray[np.float64] | None:
    """One vector, from base64 of little-endian float32 or a list of numbers; None for neither."""
    try:
        if isinstance(embedding, str):
            values = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
            with np.errstate(invalid="ignore"):  # a signalling NaN; it is refused by number later
                values = values.astype(np.float64)
        elif isinstance(embedding, list):
            values = np.array(embedding, dtype=np.float64)
        else:
            return None
    except (TypeError, ValueError, OverflowError):
        return None
    return values if values.ndim == 1 and len(values) else None
