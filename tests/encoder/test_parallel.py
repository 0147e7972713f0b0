"""ParallelEncoder: the vectors of one encoder from several processes, none of which outlives it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from ragembed import Embedder, PoolingEncoder
from ragembed.config import EncoderConfig
from ragembed.encoder import parallel_worker
from ragembed.encoder.parallel import ParallelEncoder, _error, cut
from ragembed.errors import EncodingFailed, InvalidInput, ModelNotFound
from ragembed.tokenizer import HuggingFaceTokenizer

MODEL = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def parallel() -> Iterator[ParallelEncoder]:
    """Two workers, in float32."""
    with ParallelEncoder(MODEL, devices=("cpu", "cpu"), dtype="float32") as encoder:
        yield encoder


def test_vectors_are_those_of_one_encoder_in_order(
    parallel: ParallelEncoder, encoder: PoolingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["weevil", "ship", "barn", "Valparaíso", "lone \ud800 surrogate", "winter", "map"]
    texts = [" ".join(words[: n % 7 + 1] * (n % 5 + 1)) + f" {n}" for n in range(60)]
    expected = encoder.encode(texts)
    assert np.allclose(parallel.encode(texts), expected, atol=1e-6)
    monkeypatch.setattr("ragembed.encoder.parallel.PIECE_CHARACTERS", 100)  # 50 pieces
    vectors = parallel.encode_document(texts)
    assert (vectors.dtype, vectors.shape) == (np.float32, (60, 384))
    assert np.allclose(vectors, expected, atol=1e-6)
    long = ["short", "weevil " * 400]
    assert np.allclose(parallel.encode_query(long), encoder.encode_query(long), atol=1e-6)
    cut_off = parallel.encode(long, long="truncate")
    assert np.allclose(cut_off, encoder.encode(long, long="truncate"), atol=1e-6)
    prompted = parallel.encode(iter(["one"]), prompt="query: ")
    assert np.allclose(prompted, encoder.encode(["query: one"]), atol=1e-6)
    assert parallel.encode([]).shape == (0, 384)


def test_it_says_of_itself_what_one_encoder_says(
    parallel: ParallelEncoder, encoder: PoolingEncoder
) -> None:
    assert isinstance(parallel, Embedder)
    for name in ("dimension", "fingerprint", "max_tokens", "prompts", "name"):
        assert getattr(parallel, name) == getattr(encoder, name)
    for name in ("name", "fingerprint", "special_tokens"):
        assert getattr(parallel.tokenizer, name) == getattr(encoder.tokenizer, name)
    assert parallel.tokenizer.count("The zyzzyva!") == encoder.tokenizer.count("The zyzzyva!")


def test_an_error_has_the_callers_numbers_and_the_encoder_goes_on(
    parallel: ParallelEncoder, encoder: PoolingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragembed.encoder.parallel.PIECE_CHARACTERS", 100)
    texts = ["a few words"] * 40
    texts[28] = texts[33] = "weevil " * 400
    for one in (encoder, parallel):
        with pytest.raises(InvalidInput, match="^text 29 has 802 tokens and the model reads 256"):
            one.encode_document(texts)
    texts[28] = " "
    with pytest.raises(InvalidInput, match="text 29 is blank"):
        parallel.encode_query(texts)
    with pytest.raises(InvalidInput, match="list"):
        parallel.encode("one text")
    assert np.allclose(parallel.encode(["weevil"]), encoder.encode(["weevil"]), atol=1e-6)


def test_a_folder_with_all_that_from_pretrained_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cased = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2, "q": 3}, "[UNK]"))
    cased.pre_tokenizer = pre_tokenizers.Whitespace()
    small = EncoderConfig(
        vocabulary_size=4,
        hidden_size=8,
        layers=1,
        heads=2,
        intermediate_size=8,
        positions=16,
        max_length=16,
        normalize=False,
    )
    tokenizer = HuggingFaceTokenizer(cased.to_str().encode(), "cased")
    PoolingEncoder(small, tokenizer).save(tmp_path / "model")
    limits = tmp_path / "model" / "sentence_bert_config.json"
    limits.write_text(json.dumps(json.loads(limits.read_text()) | {"do_lower_case": True}))
    monkeypatch.chdir(tmp_path)
    settings = {"truncate_dim": 4, "prompts": {"query": "q "}, "dtype": "float32"}
    one = PoolingEncoder.from_pretrained("model", device="cpu", **settings)
    with ParallelEncoder("model", devices=["cpu"], **settings) as parallel:
        assert (parallel.name, parallel.dimension, parallel.prompts) == (
            "model",
            4,
            {"query": "q "},
        )
        assert parallel.fingerprint == one.fingerprint
        assert np.allclose(parallel.encode_query(["Cat"]), one.encode_query(["Cat"]), atol=1e-6)
        raw = parallel.encode(["cat"], normalize=False)
        assert np.allclose(raw, one.encode(["cat"], normalize=False), atol=1e-6)
        assert not np.allclose(raw, one.encode(["cat"]), atol=1e-3)
        assert parallel.tokenizer.model_inputs(["CAT"]) == one.tokenizer.model_inputs(["cat"])


def test_workers_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[int] = []
    monkeypatch.setattr(parallel_worker, "limit_threads", shares.append)
    settings = parallel_worker.Settings(
        model=MODEL,
        device="cpu",
        dtype="float32",
        batch_tokens=0,
        truncate_dim=0,
        prompts=None,
        workers=3,
    )
    parallel_worker._load(settings)
    assert shares == [3]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("text 3 has 9 tokens", "text 13 has 9 tokens"),
        ("text 3 of 4 is odd", "text 13 of 50 is odd"),
        ("the vector of text 1 is not finite; it begins 'text 1'", None),
        ("device 'quantum' cannot be used", "device 'quantum' cannot be used"),
    ],
)
def test_numbers_of_texts_are_the_callers(said: str, meant: str | None) -> None:
    error = _error({"error": "EncodingFailed", "message": said}, 10, 50)
    assert type(error) is EncodingFailed
    assert str(error) == (meant or "the vector of text 11 is not finite; it begins 'text 1'")


def test_an_unexpected_exception_in_a_worker_is_an_error_here(parallel: ParallelEncoder) -> None:
    with pytest.raises(EncodingFailed, match=r"worker on cpu failed with TypeError"):
        parallel.encode(["a"], prompt=5)  # type: ignore[arg-type]


def test_an_interrupt_is_the_parents_to_handle(parallel: ParallelEncoder) -> None:
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert parallel.encode(["one", "two"]).shape == (2, 384)


def test_what_cannot_be_started(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput, match="devices is 'cpu'"):
        ParallelEncoder(MODEL, devices="cpu")
    with pytest.raises(InvalidInput, match=r"devices is \(\)"):
        ParallelEncoder(MODEL, devices=())
    before = set(multiprocessing.active_children())
    with pytest.raises(InvalidInput, match="device 'quantum' cannot be used"):
        ParallelEncoder(MODEL, devices=("cpu", "quantum"))
    with pytest.raises(ModelNotFound, match="no model folder"):
        ParallelEncoder("./not/there/at/all", devices=("cpu",))
    assert set(multiprocessing.active_children()) == before
    assert capfd.readouterr().err == ""


def test_a_worker_that_dies_is_named_and_ends_the_rest() -> None:
    before = set(multiprocessing.active_children())
    with ParallelEncoder(MODEL, devices=("cpu", "cpu"), dtype="float32") as encoder:
        started = [p for p in multiprocessing.active_children() if p not in before]
        victim = min(started, key=lambda process: process.pid or 0)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGSTOP)  # it takes a piece, and never answers
        timer = threading.Timer(0.5, os.kill, (victim.pid, signal.SIGKILL))
        timer.start()
        with pytest.raises(
            EncodingFailed, match=r"worker on cpu .* exit code -9 \(SIGKILL\) .*text"
        ):
            encoder.encode(["a few words", "and some more"])
        timer.join()
        assert set(multiprocessing.active_children()) == before
        with pytest.raises(InvalidInput, match="was closed"):
            encoder.encode(["a"])
        encoder.close()


BUSY = """
import multiprocessing, sys, threading
from ragembed.encoder import parallel
from ragembed.encoder.parallel import ParallelEncoder
parallel.PIECE_CHARACTERS = 10**9  # one piece, which takes the worker a minute
if __name__ == "__main__":
    with ParallelEncoder("all-MiniLM-L6-v2", devices=("cpu",)) as encoder:
        assert "torch" not in sys.modules
        print("ready", flush=True)
        threading.Timer(1.0, print, ("busy",), {"flush": True}).start()
        try:
            encoder.encode(["many different words " * 50] * 4000)
        except KeyboardInterrupt:
            print(len(multiprocessing.active_children()), "left")
            raise
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(sent: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == ["ready\n", "busy\n"]
        if sent == signal.SIGINT:
            os.killpg(parent.pid, sent)  # as a terminal does
        else:
            parent.send_signal(sent)
        # The worker holds the pipes as well: they end when it has.
        try:
            out, errors = parent.communicate(timeout=10)
        finally:
            if parent.returncode is None:
                os.killpg(parent.pid, signal.SIGKILL)
    assert parent.returncode == -sent
    assert out == ("0 left\n" if sent == signal.SIGINT else "")
    assert errors.count("KeyboardInterrupt") == (1 if sent == signal.SIGINT else 0)


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BUSY.replace("if __name__ == ", "if 1 or "))
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert out.returncode == 1
    assert 'exit code 1 before it was ready; a script needs `if __name__ == "__main__":`' in (
        out.stderr
    )


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 9), st.integers(1, 2000))
def test_pieces_hold_each_text_once_and_are_balanced(
    lengths: list[int], workers: int, most: int
) -> None:
    pieces = cut(lengths, workers, most)
    assert [n for first, last in pieces for n in range(first, last)] == list(range(len(lengths)))
    sizes = [sum(lengths[first:last]) for first, last in pieces]
    share = min(most, sum(lengths) / workers)
    assert all(size < share + max(lengths) for size in sizes)
    assert all(first < last for first, last in pieces)
    assert len(pieces) < max(1, sum(lengths) / most) + workers
