"""Walking folders: what is read, what is left out, and what is named as skipped."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from ragembed.config import ScanConfig
from ragembed.errors import InvalidInput
from ragembed.readers import Scan, explain, format_of, scan
from ragembed.readers.formats import unsupported_extension
from ragembed.readers.scan import os_cause

CONFIG = ScanConfig()
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file kinds")


def write(root: Path, *names: str, text: str = "text") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(found: Scan) -> list[str]:
    return [os.fsdecode(file.path) for file in found.files]


def codes(found: Scan) -> dict[str, str]:
    return {os.fsdecode(path): code for path, code, _ in found.skipped}


def test_files_are_sorted_with_their_identity(tmp_path: Path) -> None:
    write(tmp_path, "b.md", "a/z.txt", "a/b/c.py", "a.md")
    found = scan(str(tmp_path), CONFIG)
    assert names(found) == ["a.md", "a/b/c.py", "a/z.txt", "b.md"]
    status = (tmp_path / "a.md").stat()
    first = found.files[0]
    assert (first.size, first.mtime_ns, first.inode) == (4, status.st_mtime_ns, status.st_ino)
    assert found == scan(str(tmp_path), CONFIG)


def test_built_in_excludes_and_hidden_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        ".git/config",
        "node_modules/x/readme.md",
        "a/__pycache__/x.txt",
        "env/pyvenv.cfg",
        "env/lib/x.py",
        "p.egg-info/PKG-INFO",
        ".ragembed/x.txt",
        ".hidden.md",
        ".config/x.md",
        "keep.md",
    )
    assert names(scan(str(tmp_path), CONFIG)) == ["keep.md"]
    hidden = scan(str(tmp_path), ScanConfig(hidden=True))
    assert names(hidden) == [".config/x.md", ".hidden.md", "keep.md"]
    assert codes(hidden) == {}


def test_nested_ignore_files(tmp_path: Path) -> None:
    write(tmp_path, "a.log", "keep.log", "out/x.md", "sub/a.log", "sub/b.md", "sub/deep/b.md")
    write(tmp_path, "sub/top.md", "sub/deep/top.md", "sub/gen/x.md", "sub/gen/y.md")
    write(tmp_path, ".gitignore", text="*.log\n!keep.log\nout/\n# comment\n")
    write(tmp_path, "sub/.gitignore", text="!a.log\n/top.md\ngen\n")
    write(tmp_path, "sub/gen/.gitignore", text="!x.md\n")
    write(tmp_path, "sub/.ragembedignore", text="b.md\n")
    assert names(scan(str(tmp_path), CONFIG)) == ["keep.log", "sub/a.log", "sub/deep/top.md"]


def test_options_win_over_ignore_files(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "b.txt", "docs/c.md", "docs/d.txt")
    write(tmp_path, ".gitignore", text="!docs/c.md\n")
    assert names(scan(str(tmp_path), ScanConfig(include=("*.md",)))) == ["a.md", "docs/c.md"]
    assert names(scan(str(tmp_path), ScanConfig(exclude=("docs/",)))) == ["a.md", "b.txt"]
    assert names(scan(str(tmp_path), ScanConfig(include=("docs/**",), exclude=("*.txt",)))) == [
        "docs/c.md"
    ]
    with pytest.raises(InvalidInput, match="--exclude"):
        scan(str(tmp_path), ScanConfig(exclude=("[z-a]",)))


def test_subtree_honours_the_ignore_files_above_it(tmp_path: Path) -> None:
    write(tmp_path, "a/b/c.md", "a/b/d.log", "a/x.md", "skip/y.md")
    write(tmp_path, ".gitignore", text="*.log\nskip/\n")
    root = str(tmp_path)
    assert names(scan(root, CONFIG, subtree=b"a/b")) == ["a/b/c.md"]
    assert names(scan(root, CONFIG, subtree=b"a/x.md")) == ["a/x.md"]
    assert names(scan(root, CONFIG, subtree=b"a/b/d.log")) == []
    assert names(scan(root, CONFIG, subtree=b"skip/y.md")) == []
    gone = scan(root, CONFIG, subtree=b"a/none")
    assert codes(gone) == {"a/none": "vanished"} and gone.unlisted == ()
    with pytest.raises(InvalidInput):
        scan(root, CONFIG, subtree=b"../x")


def test_a_missing_root_is_unlisted(tmp_path: Path) -> None:
    found = scan(str(tmp_path / "none"), CONFIG)
    assert found.unlisted == (b"",) and codes(found) == {"": "vanished"}


def test_a_single_file_is_its_own_root(tmp_path: Path) -> None:
    write(tmp_path, "x.log")
    write(tmp_path, ".gitignore", text="*.log\n")
    assert names(scan(str(tmp_path / "x.log"), CONFIG)) == ["x.log"]


def test_protected_folders_are_not_entered(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "index/b.md")
    found = scan(str(tmp_path), CONFIG, protect=(str(tmp_path / "index"),))
    assert names(found) == ["a.md"]


@POSIX
def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "a.md", "big.md", "photo.PNG", "paper.docx", "d/x.md")
    write(tmp_path, "outside.md")
    (root / "big.md").write_text("x" * 2000)
    (root / "link.md").symlink_to("a.md")
    (root / "loop").symlink_to(".")
    (root / "out.md").symlink_to(tmp_path / "outside.md")
    os.mkfifo(root / "pipe.md")
    found = scan(str(root), ScanConfig(max_file_size=1000))
    assert names(found) == ["a.md", "d/x.md"]
    assert codes(found) == {
        "big.md": "too_big",
        "link.md": "symlink",
        "loop": "symlink",
        "out.md": "outside_root",
        "paper.docx": "unsupported",
        "photo.PNG": "unsupported",
        "pipe.md": "not_regular",
    }
    causes = {os.fsdecode(path): cause for path, _, cause in found.skipped}
    assert "2,000" in causes["big.md"] and "1,000" in causes["big.md"]
    assert "a.md" in causes["link.md"] and ".png" in causes["photo.PNG"]


@POSIX
def test_sockets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("s")
        assert codes(scan(str(tmp_path), CONFIG)) == {"s": "not_regular"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are not UTF-8")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md"))).write_text("x")
    write(tmp_path, ".gitignore", text="*.log\n")
    assert [file.path for file in scan(str(tmp_path), CONFIG).files] == [b"caf\xe9.md"]
    assert explain(str(tmp_path), b"caf\xe9.md", CONFIG) == (
        "caf\\xe9.md is indexed: no rule leaves it out."
    )


def test_unlistable_folders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.md", "locked/b.md")
    real = os.scandir

    def refuse(path: bytes) -> object:
        if path.endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = scan(str(tmp_path), CONFIG)
    assert names(found) == ["a.md"]
    assert found.unlisted == (b"locked",)
    assert codes(found) == {"locked": "permission"}


def test_deep_trees(tmp_path: Path) -> None:
    path = tmp_path
    for _ in range(400):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "x.md").write_text("x")
    assert len(scan(str(tmp_path), CONFIG).files) == 1


def test_hostile_patterns_cost_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a" * 100)
    write(tmp_path, ".gitignore", text="*a*a*a*a*a*a*a*b\n**/**/**/**/**/x\n[z-a]\n!\n\\\n")
    begin = time.perf_counter()
    assert names(scan(str(tmp_path), CONFIG)) == ["a" * 100]
    assert time.perf_counter() - begin < 5


def test_explain(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "b/c.log", "b/x/y.md", ".h", "p.png", "node_modules/m.md")
    write(tmp_path, "b/.gitignore", text="x/\n\n*.log\n")
    root = str(tmp_path)
    assert "is indexed" in explain(root, b"a.md", CONFIG)
    assert "'*.log' in b/.gitignore" in explain(root, b"b/c.log", CONFIG)
    assert "folder b/x" in explain(root, b"b/x/y.md", CONFIG)
    assert "'x/' in b/.gitignore" in explain(root, b"b/x/y.md", CONFIG)
    assert "--hidden" in explain(root, b".h", CONFIG)
    assert ".png" in explain(root, b"p.png", CONFIG)
    assert "node_modules" in explain(root, b"node_modules/m.md", CONFIG)
    assert "gone" in explain(root, b"none.md", CONFIG)
    assert "--include" in explain(root, b"a.md", ScanConfig(include=("*.txt",)))
    assert "'a.*' in --exclude" in explain(root, b"a.md", ScanConfig(exclude=("a.*",)))


def test_explain_and_scan_agree(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "b/c.log", "b/k.log", "b/x/y.md", ".h", "p.png")
    write(tmp_path, ".gitignore", text="*.log\nx\n")
    write(tmp_path, "b/.gitignore", text="!k.log\n")
    listed = set(names(scan(str(tmp_path), CONFIG)))
    for path in ("a.md", "b/c.log", "b/k.log", "b/x/y.md", ".h", "p.png", ".gitignore"):
        said = " is indexed" in explain(str(tmp_path), path.encode(), CONFIG)
        assert said == (path in listed), path


def test_formats() -> None:
    assert format_of(b"x/README") == "text" and format_of(b"Makefile") == "code"
    assert format_of(b"a.RST") == "rst" and format_of(b"a.htm") == "html"
    assert format_of(b"a.pdf") == "pdf" and format_of(b".gitignore") == "code"
    assert format_of(b"noext") is None and format_of(b"a.zzz") is None
    assert format_of(b"dir.md/noext") is None
    assert unsupported_extension(b"a.tar.GZ") == "gz"
    assert unsupported_extension(b"png") == ""


def test_system_errors_have_codes() -> None:
    assert os_cause(OSError(5, "Input/output error")) == (
        "io",
        "the system says: Input/output error",
    )
    assert os_cause(PermissionError(13, "x"))[0] == "permission"
    assert os_cause(FileNotFoundError(2, "x"))[0] == "vanished"
