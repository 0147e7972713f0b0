"""The command line as a person meets it: output, exit codes, and every kind of bad input."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ragembed.cli.main import COMMANDS, run
from ragembed.index.checksums import row_crc

Result = tuple[int, str, str]


@pytest.fixture
def ragembed_(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """Runs a command in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAGEMBED_INDEX", raising=False)

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        code = run(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "weevils.md").write_text(
        "# Beetles\n\n## Weevils\n\nThe zyzzyva is a tropical weevil. It sleeps in the attic.\n"
    )
    (folder / "deep/ships.txt").write_text(
        "A clipper sails to Valparaíso.\n\nIts cargo is saltpetre.\n"
    )
    return folder


def test_index_search_context_status(ragembed_: Callable[..., Result], docs: Path) -> None:
    code, out, err = ragembed_("index", "docs")
    assert code == 0 and out.startswith("2 added\n") and "skipped" not in err
    code, out, _ = ragembed_("search", "tropical beetle", "-k", "1")
    assert code == 0
    assert out.splitlines()[0].startswith("1. weevils.md:1-5  ")
    assert "   Beetles > Weevils" in out.splitlines()
    assert any(line.startswith("   > The zyzzyva") for line in out.splitlines())
    code, out, err = ragembed_("context", "what is a zyzzyva?", "--max-tokens", "200")
    assert code == 0 and "[1] weevils.md:1-5 (Beetles > Weevils) sha256:" in out
    assert "of 200 tokens (ragembed-32k)" in err
    code, out, err = ragembed_("status")
    assert code == 0 and "documents  2" in out and err == ""
    code, out, _ = ragembed_("ls")
    assert [line.split()[-1] for line in out.splitlines()] == [
        "path",
        "deep/ships.txt",
        "weevils.md",
    ]
    code, out, _ = ragembed_("verify")
    assert (code, out) == (0, "ok\n")


def test_an_edit_a_rename_and_a_deletion_are_exactly_that(
    ragembed_: Callable[..., Result], docs: Path
) -> None:
    (docs / "tea.md").write_text("# Tea\n\nOolong.\n")
    ragembed_("index", "docs")
    (docs / "weevils.md").write_text("# Beetles\n\nAnother weevil.\n")
    (docs / "tea.md").rename(docs / "chai.md")
    (docs / "deep/ships.txt").unlink()
    report = json.loads(ragembed_("index", "--json")[1])
    counted = {key: report[key] for key in ("added", "updated", "renamed", "removed", "unchanged")}
    assert counted == {"added": 0, "updated": 1, "renamed": 1, "removed": 1, "unchanged": 0}
    assert report["embedded"] == 1
    again = json.loads(ragembed_("index", "--json")[1])
    assert (again["unchanged"], again["embedded"]) == (2, 0)


def test_json_hits_are_exact_spans(ragembed_: Callable[..., Result], docs: Path) -> None:
    ragembed_("index", "docs")
    for hit in json.loads(ragembed_("search", "saltpetre", "--json")[1])["hits"]:
        with open(Path(hit["root"], hit["path"]), newline="", encoding="utf-8") as file:
            assert file.read()[hit["start"] : hit["end"]] == hit["text"]


def test_without_an_index_one_sentence_names_the_command(ragembed_: Callable[..., Result]) -> None:
    for command in (
        ["search", "x"],
        ["context", "x"],
        ["status"],
        ["ls"],
        ["verify"],
        ["remove", "x"],
    ):
        code, out, err = ragembed_(*command)
        assert (code, out) == (1, "")
        assert "ragembed index PATH" in err and err.count("\n") == 1
    code, _, err = ragembed_("search", "--index", "nowhere", "x")
    assert code == 1 and "ragembed index --index nowhere PATH" in err


def test_usage_errors(ragembed_: Callable[..., Result], docs: Path) -> None:
    assert ragembed_("search")[0] == 2
    assert ragembed_("no-such-command")[0] == 2
    assert ragembed_("index", "--no-such-option")[0] == 2
    code, _, err = ragembed_("index", "no-such-place")
    assert code == 2 and "no-such-place" in err
    assert not Path(".ragembed").exists()
    assert ragembed_("index", "docs", "--window", "4")[0] == 2
    assert ragembed_("index", "docs", "--encoding", "klingon")[0] == 2
    ragembed_("index", "docs")
    assert ragembed_("search", "x", "-k", "0")[0] == 2
    assert ragembed_("search", " ")[0] == 2
    assert ragembed_("context", "x", "--max-tokens", "-5")[0] == 2
    assert ragembed_("context", "x", "--tokenizer", "no-such")[0] == 2
    assert ragembed_("remove", "no-such-file")[0] == 2


def test_an_empty_folder(ragembed_: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    code, out, _ = ragembed_("index", "nothing")
    assert (code, out) == (0, "no documents\n")
    code, out, err = ragembed_("search", "anything")
    assert (code, out, err) == (0, "", "nothing found\n")


def test_an_empty_directory_is_an_empty_index(
    ragembed_: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "ix").mkdir()
    code, out, _ = ragembed_("search", "--index", "ix", "anything", "--json")
    assert code == 0 and json.loads(out)["hits"] == []


def test_bad_files_are_named_and_cost_nothing(
    ragembed_: Callable[..., Result], docs: Path, tmp_path: Path
) -> None:
    (docs / "empty.md").write_bytes(b"")
    (docs / "noise.txt").write_bytes(bytes(range(256)) * 20)
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing here")
    (docs / "utf16.txt").write_bytes("Der Käfer schläft.".encode("utf-16"))
    (docs / "latin1.txt").write_bytes(
        "Der Käfer schläft auf dem Dach über den Straßen.".encode("latin-1")
    )
    (docs / "gbk.txt").write_bytes(("象鼻虫是一种热带昆虫。" * 8).encode("gbk"))
    (docs / "new\nline.md").write_text("A path with a newline.")
    os.mkfifo(docs / "pipe.md")
    outside = tmp_path / "secret.md"
    outside.write_text("secret")
    (docs / "link.md").symlink_to(outside)
    report = json.loads(ragembed_("index", "docs", "--json")[1])
    assert report["added"] == 6
    assert {skipped["path"]: skipped["code"] for skipped in report["skipped"]} == {
        "empty.md": "empty",
        "noise.txt": "binary",
        "broken.pdf": "broken",
        "pipe.md": "not_regular",
        "link.md": "outside_root",
    }
    assert all(skipped["cause"] for skipped in report["skipped"])
    listed = {row["path"]: row["encoding"] for row in json.loads(ragembed_("ls", "--json")[1])}
    assert listed["utf16.txt"].startswith("utf-16")
    assert (
        json.loads(ragembed_("search", "象鼻虫", "-k", "1", "--json")[1])["hits"][0]["path"]
        == "gbk.txt"
    )
    top = json.loads(ragembed_("search", "Käfer Straßen", "-k", "1", "--json")[1])["hits"][0]
    assert "über den Straßen" in top["text"]
    code, out, err = ragembed_("index", "docs", "--strict")
    assert code == 3 and "empty.md: empty" in err
    code, out, _ = ragembed_("ls")
    assert "new\\nline.md" in out
    code, out, _ = ragembed_("ls", "--skipped")
    assert "link.md: outside_root" in out
    code, out, _ = ragembed_("ls", "--why", "docs/pipe.md")
    assert code == 0 and "not_regular" in out
    assert ragembed_("verify")[0] == 0


def test_why(ragembed_: Callable[..., Result], docs: Path) -> None:
    (docs / ".gitignore").write_text("*.log\n")
    (docs / "a.log").write_text("log")
    ragembed_("index", "docs")
    assert "is indexed" in ragembed_("ls", "--why", "docs/weevils.md")[1]
    assert "*.log" in ragembed_("ls", "--why", "docs/a.log")[1]
    assert "no folder the index knows" in ragembed_("ls", "--why", "elsewhere.md")[1]


def test_two_roots_with_the_same_names(ragembed_: Callable[..., Result], tmp_path: Path) -> None:
    for root, text in (("one", "The clipper sails."), ("two", "The zyzzyva sleeps.")):
        (tmp_path / root).mkdir()
        (tmp_path / root / "same.md").write_text(text)
    assert ragembed_("index", "one", "two")[0] == 0
    hits = json.loads(ragembed_("search", "zyzzyva", "--json")[1])["hits"]
    assert [(Path(hit["root"]).name, hit["path"]) for hit in hits] == [
        ("two", "same.md"),
        ("one", "same.md"),
    ]
    (tmp_path / "one/same.md").unlink()
    (tmp_path / "one/other.md").write_text("Tea.")
    ragembed_("index", "one")
    assert len(json.loads(ragembed_("ls", "--json")[1])) == 2


def test_an_unmounted_root_empties_nothing(ragembed_: Callable[..., Result], docs: Path) -> None:
    ragembed_("index", "docs")
    docs.rename(docs.with_name("gone"))
    code, out, err = ragembed_("index")
    assert code == 1 and "is not there" in err and "--allow-mass-delete" in err
    docs.mkdir()
    code, _, err = ragembed_("index")
    assert code == 1 and "has no files" in err
    assert len(json.loads(ragembed_("ls", "--json")[1])) == 2
    code, out, _ = ragembed_("index", "--allow-mass-delete")
    assert (code, out) == (0, "2 removed\n")


def test_a_directory_that_is_no_index(ragembed_: Callable[..., Result], docs: Path) -> None:
    code, _, err = ragembed_("index", "--index", "docs", "docs")
    assert code == 1 and "is not a ragembed index" in err
    assert sorted(os.listdir(docs)) == ["deep", "weevils.md"]
    assert ragembed_("search", "--index", "docs", "x")[0] == 1
    (docs / "ragembed.db").write_bytes(b"not a database at all" * 100)
    code, _, err = ragembed_("search", "--index", "docs", "x")
    assert code == 4 and "damaged" in err
    (docs / "ragembed.db").unlink()
    sqlite3.connect(docs / "ragembed.db").execute("CREATE TABLE a (b)").connection.close()
    code, _, err = ragembed_("search", "--index", "docs", "x")
    assert code == 1 and "is not a ragembed database" in err


@pytest.mark.parametrize("kind", ["faiss", "tantivy"])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_damaged_derived_files(
    ragembed_: Callable[..., Result], docs: Path, kind: str, harm: str
) -> None:
    ragembed_("index", "docs")
    before = json.loads(ragembed_("search", "zyzzyva", "--json")[1])
    pattern = "vectors-*.faiss" if kind == "faiss" else "lexical-*/*.term"
    file = max(Path(".ragembed").glob(pattern), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    file.unlink()
    if harm == "flip":
        data[len(data) // 3] ^= 0x40
        file.write_bytes(data)
    elif harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    code, out, _ = ragembed_("verify", "--json")
    assert code == 4
    assert json.loads(out)["problems"][0]["kind"] == ("faiss" if kind == "faiss" else "lexical")
    after = json.loads(ragembed_("search", "zyzzyva", "--json")[1])
    # Raw BM25 may differ in the third digit: tantivy counts deleted markers until it merges.
    for one, other in zip(before["hits"], after["hits"], strict=True):
        assert one | {"lexical": 0, "score": 0} == other | {"lexical": 0, "score": 0}
        assert one["score"] == pytest.approx(other["score"], abs=0.02)
    (docs / "new.md").write_text("Something new.")
    assert ragembed_("index", "--quiet")[0] == 0
    if (kind, harm) == ("faiss", "flip"):  # a run looks at sizes only
        assert ragembed_("verify")[0] == 4
        assert ragembed_("repair")[0] == 0
    assert ragembed_("verify")[0] == 0


def test_a_second_writer_is_told_who_holds_the_lock(
    ragembed_: Callable[..., Result], docs: Path, tmp_path: Path
) -> None:
    ragembed_("index", "docs")
    program = (
        "import time\nfrom pathlib import Path\nfrom ragembed.index.lock import writer_lock\n"
        "with writer_lock(Path('.ragembed')):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        code, _, err = ragembed_("index", "docs")
        assert code == 6 and f"process {holder.pid}" in err
        assert ragembed_("search", "zyzzyva", "-k", "1")[0] == 0
    finally:
        holder.kill()
        holder.communicate()
    assert ragembed_("index", "docs")[0] == 0


def test_another_model_or_window_is_refused_with_the_command(
    ragembed_: Callable[..., Result], docs: Path, tmp_path: Path
) -> None:
    ragembed_("index", "docs")
    code, _, err = ragembed_("index", "--window", "64")
    assert code == 1 and "ragembed index --index NEW" in err and str(docs) in err
    with sqlite3.connect(".ragembed/ragembed.db") as connection:
        ((id, dimension),) = connection.execute("SELECT id, dimension FROM model").fetchall()
        connection.execute(
            "UPDATE model SET fingerprint = 'another', name = 'another-model', crc = ?",
            (row_crc(id, "another-model", "another", dimension, "float16"),),
        )
    connection.close()
    code, _, err = ragembed_("search", "--index", ".ragembed", "x")
    assert code == 1 and "another-model" in err


def test_dry_run_leaves_no_trace(ragembed_: Callable[..., Result], docs: Path) -> None:
    code, out, _ = ragembed_("index", "docs", "--dry-run")
    assert code == 0 and out.startswith("would be: 2 added")
    assert not Path(".ragembed").exists()


def test_embed(ragembed_: Callable[..., Result], tmp_path: Path) -> None:
    code, out, _ = ragembed_("embed", "one sentence", "another")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["tokens"] for row in rows] == [4, 3]
    assert all(len(row["embedding"]) == 384 and row["truncated"] is False for row in rows)
    long = "weevil " * 400
    code, _, err = ragembed_("embed", long)
    assert code == 2 and "256" in err
    cut = json.loads(ragembed_("embed", long, "--long", "truncate")[1])
    assert (cut["truncated"], cut["tokens"]) == (True, 256)
    assert ragembed_("embed", "x", "--npy", "out.npy")[0] == 0
    import numpy as np

    assert np.load("out.npy").shape == (1, 384)


def test_doctor(ragembed_: Callable[..., Result]) -> None:
    code, out, err = ragembed_("doctor", "--json")
    found = json.loads(out)
    assert (code, found["ok"], err) == (0, True, "")
    assert {"python", "torch", "sqlite", "device", "model"} <= set(found["facts"])


def test_paths_from_documents_cannot_move_the_cursor(
    ragembed_: Callable[..., Result], docs: Path
) -> None:
    (docs / "a\x1b[31m.md").write_text("The basilisk \x1b[2J glares.\u202e")
    ragembed_("index", "docs")
    out = ragembed_("search", "basilisk", "-k", "1")[1]
    assert "\x1b" not in out and "\u202e" not in out and "\\x1b[31m" in out


def test_remove(ragembed_: Callable[..., Result], docs: Path) -> None:
    ragembed_("index", "docs")
    assert ragembed_("remove", "docs/weevils.md")[1] == "1 document removed\n"
    assert ragembed_("remove", "docs")[1] == "1 document removed\n"
    assert json.loads(ragembed_("status", "--json")[1])["roots"] == []
    assert ragembed_("verify")[0] == 0


def test_ctrl_c_keeps_what_was_committed(docs: Path, tmp_path: Path) -> None:
    for number in range(700):
        words = " ".join(f"w{number}x{n}" for n in range(60))
        (docs / f"{number}.txt").write_text(f"Document {number}. {words}\n")
    command = [sys.executable, "-m", "ragembed", "index", "docs", "--verbose"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, bufsize=0)
    assert child.stderr is not None
    first = b""
    while not first.startswith(b"added"):
        first = child.stderr.readline()
        assert first, "the child ended before it had committed anything"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"interrupted; what was committed is kept" in err and b"Traceback" not in err
    import ragembed

    with ragembed.Corpus(tmp_path / ".ragembed", create=False) as corpus:
        assert 0 < corpus.status().documents < 702
        assert corpus.verify().ok


def test_help_names_every_command(ragembed_: Callable[..., Result]) -> None:
    code, out, _ = ragembed_("--help")
    assert code == 0 and all(name in out for name in COMMANDS)
    assert ragembed_("-h")[1] == out
    assert ragembed_("--version")[1].startswith("ragembed, version")


def test_a_closed_pipe_is_no_error(docs: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "ragembed", "index", "docs"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "ragembed", "ls", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(timeout=60) in (0, 1) and err == b""


def embed(stdin: bytes | None, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """`ragembed embed` as a process; stdin None means closed."""
    command = [sys.executable, "-m", "ragembed", "embed", "--dtype", "float32", *arguments]
    if stdin is None:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60)


def test_embed_reads_lines_and_writes_small_vectors(tmp_path: Path) -> None:
    lines = "\ufeffone line\r\n\n  \nanother\n".encode()
    rows = [json.loads(line) for line in embed(lines, "-").stdout.splitlines()]
    assert [len(row["embedding"]) for row in rows] == [384, 384]
    assert [row["tokens"] for row in rows] == [4, 3]
    short = embed(lines, "-", "--truncate-dim", "16", "--precision", "binary")
    assert [len(json.loads(line)["embedding"]) for line in short.stdout.splitlines()] == [2, 2]
    beyond = embed(None, "x", "--truncate-dim", "999")
    assert beyond.returncode == 2 and b"the vectors have 384 dimensions" in beyond.stderr


def test_embed_says_which_byte_is_no_utf_8() -> None:
    out = embed(b"good line\n" * 2000 + b"b\xffd\n")
    assert out.returncode == 2
    assert b"stdin is not UTF-8 (invalid start byte at byte 20001)" in out.stderr
    for nothing in (b"", b"\n \n", None):
        out = embed(nothing)
        assert out.returncode == 2 and out.stderr == b"error: there is no text to embed\n"
