"""Reading one file: races, limits, kinds, and what becomes of its text."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from ragembed.config import ScanConfig
from ragembed.errors import ReadError
from ragembed.readers import RawFile, Sandbox, extract, read_bytes, read_file
from ragembed.readers import files as module

CONFIG = ScanConfig()
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file kinds")


def code_of(root: Path, path: bytes, config: ScanConfig = CONFIG) -> str:
    with pytest.raises(ReadError) as caught:
        read_file(str(root), path, config)
    return caught.value.code


def test_document_keeps_newlines_and_drops_the_mark(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf# T\xc3\xaftle\r\n\r\ntext\x0cmore\r\n"
    (tmp_path / "a.md").write_bytes(data)
    content = read_file(str(tmp_path), b"a.md", CONFIG)
    document = content.document
    assert document.text == "# Tïtle\r\n\r\ntext\x0cmore\r\n"
    assert (document.id, document.format, document.title) == ("a.md", "markdown", "Tïtle")
    assert [block.kind for block in document.blocks] == ["heading", "paragraph"]
    assert content.sha256 == hashlib.sha256(data).digest()
    status = (tmp_path / "a.md").stat()
    assert (content.size, content.mtime_ns, content.inode) == (
        len(data),
        status.st_mtime_ns,
        status.st_ino,
    )


def test_nul_and_lone_surrogates_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 70_000 + b"a\x00b\x00")
    document = read_file(str(tmp_path), b"a.txt", CONFIG).document
    assert document.text.endswith("a b ") and document.replaced == 2
    (tmp_path / "b.txt").write_bytes("a b".encode("utf-16"))
    assert read_file(str(tmp_path), b"b.txt", CONFIG).document.replaced == 0
    data = b"x+2AA-y" * 3  # UTF-7 can spell a lone surrogate
    raw = RawFile(data, b"", len(data), 0, 0)
    with Sandbox() as sandbox:
        try:
            document = extract(raw, b"c.txt", ScanConfig(encoding="utf-7"), sandbox)
        except ReadError as error:
            assert error.code == "encoding_unknown"
        else:
            assert "\ud800" not in document.text and document.replaced == 3


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n", b"\xef\xbb\xbf", "\u2003\u00a0".encode()])
def test_empty_files_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.md").write_bytes(data)
    assert code_of(tmp_path, b"a.md") == "empty"


def test_unknown_extensions_are_decided_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.zzz").write_bytes(b"words")
    (tmp_path / "b").write_bytes(b"\x7fELF\x00\x00")
    (tmp_path / "c.docx").write_bytes(b"PK")
    assert read_file(str(tmp_path), b"a.zzz", CONFIG).document.format == "text"
    assert code_of(tmp_path, b"b") == "binary"
    assert code_of(tmp_path, b"c.docx") == "unsupported"


def test_a_single_file_root(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    assert read_file(str(tmp_path / "a.md"), b"a.md", CONFIG).document.text == "x"


def test_limits_and_errors(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x" * 101)
    assert code_of(tmp_path, b"a.md", ScanConfig(max_file_size=100)) == "too_big"
    assert code_of(tmp_path, b"none.md") == "vanished"
    (tmp_path / "dir").mkdir()
    assert code_of(tmp_path, b"dir") in ("not_regular", "permission")


@POSIX
def test_kinds_and_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    os.mkfifo(root / "pipe")
    assert code_of(root, b"pipe") == "not_regular"
    (root / "a.md").write_text("x")
    (root / "link.md").symlink_to("a.md")
    assert code_of(root, b"link.md") == "symlink"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.md").write_text("secret")
    (root / "swapped").symlink_to(tmp_path / "out")
    assert code_of(root, b"swapped/b.md") == "outside_root"
    assert code_of(root, b"../out/b.md") == "outside_root"


def test_a_file_that_keeps_changing_is_unstable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.md"
    path.write_text("x")
    real = os.read
    changes = 2

    def read(descriptor: int, size: int) -> bytes:
        nonlocal changes
        data = real(descriptor, size)
        if data and changes:
            changes -= 1
            os.utime(path, ns=(changes, changes))
        return data

    monkeypatch.setattr(module.os, "read", read)
    assert read_bytes(str(tmp_path), b"a.md", CONFIG).data == b"x"
    changes = 3
    with pytest.raises(ReadError) as caught:
        read_bytes(str(tmp_path), b"a.md", CONFIG)
    assert caught.value.code == "unstable"


def test_read_errors_become_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("x")
    for number, code in ((5, "io"), (13, "permission")):

        def fail(descriptor: int, size: int, number: int = number) -> bytes:
            raise OSError(number, "no")

        monkeypatch.setattr(module.os, "read", fail)
        assert code_of(tmp_path, b"a.md") == code


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are not UTF-8")
def test_undecodable_names_are_shown_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).write_text("x")
    assert read_file(str(tmp_path), b"caf\xe9.md", CONFIG).document.id == "caf\\xe9.md"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_size_is_counted_not_believed() -> None:
    raw = read_bytes("/proc", b"%d/status" % os.getpid(), CONFIG)
    assert raw.size == len(raw.data) > 0
    with pytest.raises(ReadError) as caught:
        read_bytes("/proc", b"%d/status" % os.getpid(), ScanConfig(max_file_size=10))
    assert caught.value.code == "too_big"
