"""RemoteEmbedder against a real HTTP server on this machine that can be told to misbehave."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ragembed
from ragembed.encoder.remote import RemoteEmbedder
from ragembed.encoder.remote_endpoint import LONGEST_WAIT, error_message, retry_after
from ragembed.errors import EncodingFailed, InvalidInput, ModelMismatch, RemoteFailed

KEY = "sk-very-secret-key"
D = 8
Act = Callable[["Handler", dict[str, Any]], None]


class Server(ThreadingHTTPServer):
    """Answers each request as the next entry of `script` says, and well when none is left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Act] = []
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers["Authorization"])
        act = self.server.script.pop(0) if self.server.script else rows()
        act(self, request)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def raw(text: str, size: int = D) -> np.ndarray:
    """What the server gives for a text: not of unit length, shared words bring near."""
    vector = np.full(size, 0.01)
    for word in text.lower().split():
        vector[sum(word.encode()) % size] += 2
    return vector


def unit(text: str, size: int = D) -> np.ndarray:
    vector = raw(text, size).astype(np.float32)
    return vector / np.linalg.norm(vector)


def packed(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def rows(
    edit: Callable[[list[dict[str, Any]]], object] = lambda data: None,
    encode: Callable[[np.ndarray], object] = packed,
    size: int = D,
) -> Act:
    """A good answer, or one whose rows `edit` has changed."""

    def act(handler: Handler, request: dict[str, Any]) -> None:
        data = [
            {"object": "embedding", "index": n, "embedding": encode(raw(text, size))}
            for n, text in enumerate(request["input"])
        ]
        edit(data)
        handler.answer(200, json.dumps({"object": "list", "data": data}).encode())

    return act


def says(status: int, body: object = "", **headers: str) -> Act:
    """An answer with a status and a body, as it is or as JSON."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return lambda handler, request: handler.answer(status, data, **headers)


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    """What was slept, in seconds."""
    return []


@pytest.fixture
def make(server: Server, waits: list[float]) -> Iterator[Callable[..., RemoteEmbedder]]:
    made = []

    def build(**changes: Any) -> RemoteEmbedder:
        arguments: dict[str, Any] = {
            "base_url": server.url,
            "model": "tiny",
            "dimension": D,
            "api_key": KEY,
            "sleep": waits.append,
        }
        made.append(RemoteEmbedder(**arguments | changes))
        return made[-1]

    yield build
    for embedder in made:
        embedder.close()


Make = Callable[..., RemoteEmbedder]


def test_vectors_are_unit_float32_in_the_order_given(server: Server, make: Make) -> None:
    embedder = make()
    texts = ["red apples", "blue sky", "lone \ud800 surrogate"]
    vectors = embedder.encode_document(texts)
    assert isinstance(embedder, ragembed.Embedder)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, D)
    assert np.allclose(vectors[:2], [unit("red apples"), unit("blue sky")], atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert server.paths == ["/v1/embeddings"]
    assert server.keys == [f"Bearer {KEY}"]
    assert server.requests == [
        {
            "model": "tiny",
            "input": ["red apples", "blue sky", "lone \ufffd surrogate"],
            "encoding_format": "base64",
        }
    ]


def test_nothing_in_asks_nothing(server: Server, make: Make) -> None:
    assert make().encode_query([]).shape == (0, D)
    assert server.requests == []


def test_without_a_key_none_is_sent(server: Server, make: Make) -> None:
    make(api_key=None).encode_query(["a"])
    assert server.keys == [None]


def test_dimensions_are_sent_when_asked_for(server: Server, make: Make) -> None:
    make(send_dimensions=True).encode_query(["a"])
    assert server.requests[0]["dimensions"] == D


def test_prompts_go_in_front(server: Server, make: Make) -> None:
    embedder = make(query_prompt="query: ", document_prompt="passage: ")
    embedder.encode_query(["a"])
    embedder.encode_document(["a"])
    assert [request["input"] for request in server.requests] == [["query: a"], ["passage: a"]]


def test_requests_are_bounded_in_texts_and_characters(server: Server, make: Make) -> None:
    texts = ["aa", "bb", "c" * 20, "d", "eeee", "f", "g", "h"]
    embedder = make(batch_texts=2, batch_characters=8, document_prompt="..")
    vectors = embedder.encode_document(texts)
    sent = [request["input"] for request in server.requests]
    assert sent == [
        ["..aa", "..bb"],
        [".." + "c" * 20],
        ["..d"],
        ["..eeee"],
        ["..f", "..g"],
        ["..h"],
    ]
    assert np.allclose(vectors, [unit(".." + text) for text in texts], atol=1e-6)


def test_float_lists_and_any_order_are_understood(server: Server, make: Make) -> None:
    server.script = [rows(encode=np.ndarray.tolist), rows(edit=list.reverse)]
    for _ in range(2):
        vectors = make().encode_query(["one", "two", "three"])
        assert np.allclose(vectors, [unit("one"), unit("two"), unit("three")], atol=1e-6)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_very_large_and_small_numbers_are_normalised(
    server: Server, make: Make, scale: float
) -> None:
    server.script = [rows(encode=lambda vector: (vector * scale).tolist())]
    assert np.allclose(make().encode_query(["one"]), [unit("one")], atol=1e-6)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_passes_is_tried_again(
    server: Server, make: Make, waits: list[float], status: int
) -> None:
    server.script = [says(status), says(status)]
    assert np.allclose(make().encode_query(["one"]), [unit("one")], atol=1e-6)
    assert len(server.requests) == 3
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


def test_retry_after_is_waited_for(server: Server, make: Make, waits: list[float]) -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    server.script = [says(429, Retry_After=when) for when in ("7", soon, "86400", "whenever")]
    make().encode_query(["one"])
    assert waits[0] == 7
    assert 25 < waits[1] <= 30
    assert waits[2] == LONGEST_WAIT
    assert waits[3] <= 4


def test_after_all_attempts_one_sentence_says_what_happened(
    server: Server, make: Make, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [says(429, {"error": {"message": "slow down"}})] * 3
    with pytest.raises(RemoteFailed) as caught:
        make(retries=2, batch_texts=2).encode_query(["a", "b", "c"])
    assert str(caught.value) == (
        f"{server.url} answered 429 for texts 1 to 2 of 3 (slow down), 3 times in a row; ask again "
        "later, or lower batch_texts"
    )
    assert (caught.value.exit_code, caught.value.http_status) == (1, 502)
    assert len(waits) == 2
    ours = [record.message for record in caplog.records if record.name.startswith("ragembed")]
    assert len(ours) == 2 and "(2 of 2)" in ours[1]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            400,
            {"error": {"message": "too long", "type": "x", "param": None}},
            r"400 .*\(too long\)",
        ),
        (401, {"error": {"message": "bad key"}}, r"\(bad key\); check api_key"),
        (404, "", r"404 .*\(without a reason\); check base_url and model"),
        (413, {"message": "payload", "code": 413, "type": "Validation"}, r"\(payload\); lower"),
        (422, {"error": "tokens", "error_type": "Validation"}, r"\(tokens\)"),
        (418, "a\x1b[31m\n teapot\x00\u202e", r"418 .*\(a \[31m teapot\); look at"),
        (400, {"detail": [{"loc": "input"}]}, r'\({"detail": \[{"loc": "input"}\]}\)'),
        (404, {"detail": "no such route"}, r"\(no such route\)"),
        (400, "[1, 2]", r"\(\[1, 2\]\)"),
        (400, "z" * 100_000, rf"\({'z' * 300}\.\.\.\)"),
        (204, "", "answered 204"),
    ],
)
def test_other_statuses_fail_at_once_with_the_servers_words(
    server: Server, make: Make, waits: list[float], status: int, body: object, message: str
) -> None:
    server.script = [says(status, body)]
    with pytest.raises(RemoteFailed, match=message):
        make().encode_query(["a"])
    assert len(server.requests) == 1
    assert waits == []


def test_the_key_is_in_no_message_log_or_repr(
    server: Server, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"wrong key {KEY}"
    server.script = [
        says(401, {"error": {"message": echo}}),
        says(400, "x" * 285 + KEY),  # a cut through the key must not save its beginning
        says(200, echo),
        says(200, {"error": echo}),
        says(500, echo),
        says(500, echo),
    ]
    embedder = make(retries=1)
    messages = []
    for _ in range(5):
        with pytest.raises(RemoteFailed) as caught:
            embedder.encode_query(["a"])
        messages.append(str(caught.value))
    assert server.script == []
    assert all("***" in message for message in messages)
    for text in (*messages, caplog.text, repr(embedder)):
        assert KEY[:12] not in text


def test_the_key_is_not_in_the_message_of_a_redirect(server: Server, make: Make) -> None:
    server.script = [says(307, "", Location=f"http://127.0.0.2/?key={KEY}")]
    with pytest.raises(RemoteFailed, match=r"/\?key=\*\*\*, not followed"):
        make().encode_query(["a"])


def test_no_redirect_is_followed(server: Server, make: Make) -> None:
    with serving() as other:
        for status in (301, 302, 303, 307, 308):
            server.script = [says(status, "", Location=f"{other.url}/embeddings")]
            with pytest.raises(RemoteFailed, match=f"{status} .*redirect to {other.url}"):
                make().encode_query(["a"])
        assert other.requests == []


def hang(handler: Handler, request: dict[str, Any]) -> None:
    handler.server.released.wait(10)
    handler.close_connection = True


def trickle(handler: Handler, request: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.released.wait(0.02):
        handler.wfile.write(b" ")


@pytest.mark.parametrize("act", [hang, trickle])
def test_an_answer_that_does_not_come_in_time(
    server: Server, make: Make, waits: list[float], act: Act
) -> None:
    server.script = [act, act]
    started = time.monotonic()
    with pytest.raises(RemoteFailed, match=r"no answer within 0\.2 seconds.* 2 times in a row"):
        make(timeout=0.2, retries=1).encode_query(["a"])
    assert time.monotonic() - started < 5
    assert len(waits) == 1
    server.script = [act]
    assert make(timeout=0.2).encode_query(["a"]).shape == (1, D)


def test_a_connection_that_breaks_is_tried_again(server: Server, make: Make) -> None:
    def breaks(handler: Handler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"data": [')
        handler.close_connection = True

    server.script = [breaks]
    assert make().encode_query(["a"]).shape == (1, D)
    assert len(server.requests) == 2


def test_a_server_that_is_not_there(make: Make, waits: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RemoteFailed, match=rf"{url} was not reached .*whether the server runs"):
            make(base_url=url, retries=3).encode_query(["a"])
    assert len(waits) == 3


def test_an_answer_is_bounded_in_size(server: Server, make: Make) -> None:
    server.script = [says(200, " " * 2_000_000)]
    with pytest.raises(RemoteFailed, match=r"answered more than 1,049,088 bytes"):
        make().encode_query(["a"])


def test_an_error_is_bounded_in_size_too(server: Server, make: Make) -> None:
    def endless(handler: Handler, request: dict[str, Any]) -> None:
        handler.send_response(400)
        handler.send_header("Content-Length", "1000000000")
        handler.end_headers()
        for _ in range(300):  # 20 MB, more than sockets hold
            handler.wfile.write(b"z" * 65536)

    server.script = [endless]
    with pytest.raises(RemoteFailed, match="answered 400"):
        make(retries=0).encode_query(["a"])


def put(index: int, name: str, value: object) -> Callable[[list[dict[str, Any]]], object]:
    return lambda data: data[index].__setitem__(name, value)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (says(200, '{"data": [{"index": 0, '), "23 bytes that are not JSON"),
        (says(200, "[" * 100_000), "100,000 bytes that are not JSON"),
        (says(200, "<html>login</html>"), "'<html>login</html>'"),
        (says(200, []), "without a list 'data'"),
        (says(200, {"error": {"message": "no model"}}), r"without a list 'data' .*\(no model\)"),
        (rows(lambda data: data.pop()), "gave 2 vectors for texts 1 to 3 of 3 where 3 are due"),
        (rows(lambda data: data.append(data[0])), "gave 4 vectors"),
        (rows(put(2, "index", 1)), "index 1 .* each of 0 to 2 is due once"),
        (rows(put(2, "index", 3)), "index 3 "),
        (rows(put(2, "index", -1)), "index -1 "),
        (rows(put(1, "index", True)), "index True "),
        (rows(lambda data: data[1].pop("index")), "index None "),
        (rows(lambda data: data.__setitem__(1, "x")), "index None "),
        (rows(size=D + 4), f"12 dimensions where {D} are due; say dimension=12"),
        (rows(put(1, "embedding", "*" + packed(np.ones(D)))), "no vector at index 1"),
        (rows(put(1, "embedding", "AAAA")), "no vector at index 1"),
        (rows(put(1, "embedding", "")), "no vector at index 1"),
        (rows(put(1, "embedding", {})), "no vector at index 1"),
        (rows(put(1, "embedding", [[1.0] * D])), "no vector at index 1"),
        (rows(put(1, "embedding", ["x"] * D)), "no vector at index 1"),
        (rows(put(1, "embedding", [10**400] * D)), "no vector at index 1"),
    ],
)
def test_an_answer_that_is_not_vectors(server: Server, make: Make, act: Act, message: str) -> None:
    server.script = [act]
    with pytest.raises(RemoteFailed, match=message):
        make().encode_query(["a", "b", "c"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("embedding", "kind"),
    [
        ([0.5] * (D - 1) + [float("nan")], "not finite"),
        ([0.5] * (D - 1) + [float("-inf")], "not finite"),
        (packed(np.full(D, np.nan)), "not finite"),
        (base64.b64encode(b"\x01\x00\x80\x7f" * D).decode(), "not finite"),  # signalling NaN
        ([0.0] * D, "zero"),
    ],
)
def test_a_vector_that_has_no_direction(
    server: Server, make: Make, embedding: object, kind: str
) -> None:
    server.script = [rows(), rows(put(1, "embedding", embedding))]
    with pytest.raises(EncodingFailed, match=f"for text 4 of 5 is {kind}"):
        make(batch_texts=2).encode_query(["a", "b", "c", "d", "e"])


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_a_blank_text_is_refused_by_number(server: Server, make: Make, blank: str) -> None:
    with pytest.raises(InvalidInput, match="text 2 is blank"):
        make(document_prompt="passage: ").encode_document(["a", blank])
    with pytest.raises(InvalidInput, match="list"):
        make().encode_query("one text")
    with pytest.raises(InvalidInput, match="text 2 is of type int; give strings"):
        make().encode_query(["a", 5])  # type: ignore[list-item]
    assert server.requests == []


def test_the_fingerprint_says_what_vectors_mean(make: Make) -> None:
    prints = [
        make(**changes).fingerprint
        for changes in (
            {"base_url": "http://one:8080/v1"},
            {"base_url": "http://two:8080/v1"},
            {"base_url": "http://one:8080/v1", "model": "other"},
            {"base_url": "http://one:8080/v1", "dimension": 9},
            {"base_url": "http://one:8080/v1", "query_prompt": "q"},
            {"base_url": "http://one:8080/v1", "document_prompt": "q"},
            {"base_url": "http://one:8080/v1", "identity": "ours"},
        )
    ]
    assert len(set(prints)) == len(prints)
    same = make(base_url="HTTP://One:8080/v1/", api_key=None, batch_texts=5, timeout=1)
    assert same.fingerprint == prints[0]
    assert make(base_url="http://two:1/v1", identity="ours").fingerprint == prints[-1]


def test_closed_twice_and_then_asked(make: Make) -> None:
    with make() as embedder:
        assert embedder.encode_query(["a"]).shape == (1, D)
    embedder.close()
    with pytest.raises(InvalidInput, match="was closed"):
        embedder.encode_query(["a"])


def test_this_machine_is_never_asked_through_a_proxy(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        make().encode_query(["a"])
        assert proxy.paths == []
        make(base_url="http://far.invalid/v1").encode_query(["a"])
        assert proxy.paths == ["http://far.invalid/v1/embeddings"]


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.8.0.1", "http://[::1]:8080"])
def test_a_proxy_that_cannot_be_used_matters_only_for_other_machines(
    make: Make, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://proxy")
    make(base_url=url)
    with pytest.raises(InvalidInput, match="check HTTP_PROXY"):
        make(base_url="http://far.invalid")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8080"}, "not a server's address"),
        ({"base_url": "ftp://host/v1"}, "not a server's address"),
        ({"base_url": "http://"}, "not a server's address"),
        ({"base_url": "http://host:port/"}, "cannot be used"),
        ({"base_url": "http://host/v1?api-version=1"}, "after . or #"),
        ({"model": " "}, "model is blank"),
        ({"dimension": 0}, "dimension is 0"),
        ({"batch_texts": 0}, "batch_texts is 0"),
        ({"batch_texts": 2049}, "between 1 and 2,048"),
        ({"batch_characters": 0}, "batch_characters is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_arguments_that_cannot_be_used(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": f"http://user:{KEY}@host/v1"},
        {"base_url": f"ftp://{KEY}@host/v1"},
        {"api_key": f"{KEY}\n"},
        {"api_key": f"{KEY}\u00e9"},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(make: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(**changes)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("1.5", 1.5),
        ("-3", 0),
        ("9" * 400, LONGEST_WAIT),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 9998 23:59:59 GMT", LONGEST_WAIT),
        ("Fri, 31 Dec 9998 23:59:59 -0000", LONGEST_WAIT),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", 0),
    ],
)
def test_what_retry_after_asks_for(value: str | None, seconds: float) -> None:
    assert retry_after(value) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{1,9} \d+:\d+:\d+ \S*"))
def test_no_retry_after_is_too_odd_or_too_long(value: str) -> None:
    assert 0 <= retry_after(value) <= LONGEST_WAIT


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_any_body_has_a_message(body: bytes) -> None:
    assert isinstance(error_message(body), str)


def test_an_index_filled_and_asked_through_it(tmp_path: Path, server: Server, make: Make) -> None:
    with ragembed.open(tmp_path / "index", encoder=make()) as corpus:
        documents = [("a", "red apples in a basket"), ("b", "blue sky above the sea")]
        report = corpus.add([ragembed.Document(id=name, text=text) for name, text in documents])
        assert report.added == 2
        assert corpus.search("apples red", k=1, mode="dense")[0].path == "a"
        assert corpus.status().model.name == "tiny"
        assert corpus.verify().ok
    with ragembed.open(tmp_path / "index", encoder=make(model="other")) as corpus:
        with pytest.raises(ModelMismatch, match="holds vectors of tiny"):
            corpus.search("apples", mode="dense")
