"""Space and traces: what is compacted, what a purge leaves, who may read the files and where they lie."""

from __future__ import annotations

import os
import sqlite3
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ragembed import Corpus, Document
from ragembed.errors import InvalidInput, StorageError
from ragembed.index import commit, disk, schema
from ragembed.index.commit import Writer
from ragembed.index.lexical import DIRECTORY

SECRET = "xylophonist"


def traces(directory: Path, word: str) -> list[str]:
    """Files that hold a word, as it is or inside anything that zlib has compressed."""
    found = []
    for file in sorted(directory.rglob("*")):
        if not file.is_file():
            continue
        data = file.read_bytes()
        plain = word.encode() in data
        packed = any(
            word.encode() in inflated(data[at:])
            for head in (b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x78\x5e")
            for at in positions(data, head)
        )
        if plain or packed:
            found.append(file.name)
    return found


def positions(data: bytes, head: bytes) -> list[int]:
    found, at = [], data.find(head)
    while at >= 0:
        found.append(at)
        at = data.find(head, at + 1)
    return found


def inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, 1 << 16)
    except zlib.error:
        return b""


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite as it is by default; some systems build it so that it overwrites what it deletes."""
    real = schema.connect

    def connect(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connection = real(*arguments, **settings)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    monkeypatch.setattr(schema, "connect", connect)


@pytest.fixture
def with_secret(careless: None, filled: Corpus) -> Corpus:
    filled.add([Document(id="secret", text=f"The {SECRET} plays. " * 40, title=f"On {SECRET}s")])
    filled.add([Document(id=f"d{n}", text=f"burrow number {n}") for n in range(30)])
    return filled


def test_without_purge_a_trace_may_stay(with_secret: Corpus, directory: Path) -> None:
    """The search for traces finds them where they are."""
    assert traces(directory, SECRET)
    with_secret.remove(["secret"])
    assert with_secret.search(SECRET, mode="lexical").hits == ()
    assert "ragembed.db" in traces(directory, SECRET)


def test_a_purge_leaves_nothing(with_secret: Corpus, directory: Path) -> None:
    with_secret.search(SECRET)
    assert with_secret.remove(["secret"], purge=True) == 1
    assert traces(directory, SECRET) == []
    assert with_secret.verify().ok
    with with_secret.reading() as store:
        assert store.setting("purge") is None
    assert with_secret.search("number 7", mode="dense").hits
    assert traces(directory, "aardvark")  # and nothing else is gone


def test_a_purge_that_was_killed_is_finished_by_the_next_writer(
    with_secret: Corpus, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def die(*_: object) -> bool:
            raise KeyboardInterrupt

        patch.setattr(Writer, "scrub", die)
        with pytest.raises(KeyboardInterrupt):
            with_secret.remove(["secret"], purge=True)
    assert "ragembed.db" in traces(directory, SECRET)
    with_secret.add([Document(id="other", text="Something else.")])
    assert traces(directory, SECRET) == []
    assert with_secret.verify().ok


def test_a_reader_of_an_old_commit_delays_a_purge_and_is_named(
    with_secret: Corpus,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ragembed.index.schema.BUSY_TIMEOUT", 0.2)
    with with_secret.reading() as store:
        store.counts()
        with_secret.remove(["secret"], purge=True)
        assert "finishes the purge" in caplog.text
        files = {file.name for file in directory.glob("vectors-*")}
        with_secret.add([Document(id="more", text="One more.")])
        assert files <= {
            file.name for file in directory.glob("vectors-*")
        }  # only the log is left to do
    assert with_secret.search(SECRET, mode="lexical").hits == ()
    with_secret.compact()
    assert traces(directory, SECRET) == []


def test_compact_gives_space_back(corpus: Corpus, directory: Path) -> None:
    corpus.add([Document(id=f"d{n}", text=f"word{n} " * 200) for n in range(60)])
    corpus.delete([f"d{n}" for n in range(50)])
    assert corpus.status().dead_bytes > 0
    report = corpus.compact()
    assert report.bytes_after < report.bytes_before
    assert corpus.status().dead_bytes == 0
    assert corpus.verify().ok
    assert corpus.search("word55", mode="lexical")[0].path == "d55"
    assert corpus.compact().bytes_after <= report.bytes_after + 4096  # and again: nothing to do


def test_a_run_gives_back_what_is_mostly_free(
    corpus: Corpus, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "FREE_BYTES", 50_000)
    corpus.add([Document(id=f"d{n}", text=f"word{n} " * 200) for n in range(60)])
    before = (directory / "ragembed.db").stat().st_size
    corpus.delete([f"d{n}" for n in range(50)])
    assert (directory / "ragembed.db").stat().st_size < before / 2
    assert corpus.verify().ok


def test_a_run_without_changes_writes_nothing(
    filled: Corpus, directory: Path, digest: Callable[[Path], dict[str, str]]
) -> None:
    before = digest(directory)
    filled.add([])
    after = digest(directory)
    before.pop("LOCK")
    after.pop("LOCK")
    assert before == after


# -- who may read ----------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_every_file_is_private(filled: Corpus, directory: Path) -> None:
    filled.delete(["badger"])
    filled.search("burrow")
    for path in [directory, *directory.rglob("*")]:
        if path.name.startswith(".tantivy-") and path.name.endswith(".lock"):
            continue  # empty, and made anew by tantivy; their folder is private
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((directory / DIRECTORY).stat().st_mode) == 0o700


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_an_empty_folder_that_was_open_becomes_private(
    directory: Path, open_corpus: Callable[..., Corpus]
) -> None:
    directory.mkdir(mode=0o755, parents=True)
    directory.chmod(0o755)
    open_corpus(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


# -- where they lie --------------------------------------------------------------------------------


def mounts(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, str]) -> None:
    partitions = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in found]
    monkeypatch.setattr(disk.psutil, "disk_partitions", lambda **_: partitions)


@pytest.mark.parametrize("kind", ["nfs4", "CIFS", "9p", "fuse.sshfs", "smbfs", "lustre"])
def test_a_network_file_system_is_refused(
    tmp_path: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with Corpus(tmp_path / "index", encoder=embedder) as corpus:
        corpus.add([Document(id="a", text="burrow")])
        mounts(monkeypatch, ("/", "ext4"), (str(tmp_path), kind))
        with pytest.raises(StorageError, match=f"network file system \\({kind.lower()}\\)"):
            corpus.add([Document(id="b", text="burrow")])
    for create in (True, False):
        with pytest.raises(StorageError, match="local disk"):
            Corpus(tmp_path / "index", encoder=embedder, create=create)
    with pytest.raises(StorageError, match="local disk"):
        Corpus(tmp_path / "new", encoder=embedder)


def test_the_innermost_mount_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "home" / "index"
    inside.mkdir(parents=True)
    home = str(tmp_path / "home")
    mounts(monkeypatch, ("/", "ext4"), (home, "nfs"), (home, "tmpfs"))
    assert disk.file_system(inside) == "tmpfs"
    mounts(monkeypatch, ("/", "nfs"), (home + "-other", "nfs"), (home, "fuse.mergerfs"))
    assert disk.file_system(inside) == "fuse.mergerfs"
    disk.refuse_network(inside)
    mounts(monkeypatch, ("/", "xfs"), (str(inside) + "x", "nfs"))
    assert disk.file_system(inside) == "xfs"


def test_a_system_that_says_nothing_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError("no /proc here")

    monkeypatch.setattr(disk.psutil, "disk_partitions", refuse)
    assert disk.file_system(tmp_path) == ""
    disk.refuse_network(tmp_path)


def test_a_moved_index_and_moved_folders_go_on(
    tmp_path: Path, embedder: Any, open_corpus: Callable[..., Corpus]
) -> None:
    docs = tmp_path / "old" / "docs"
    docs.mkdir(parents=True)
    (docs / "a.txt").write_text("A burrow.")
    with Corpus(tmp_path / "index", encoder=embedder) as corpus:
        corpus.sync(docs)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "index").rename(tmp_path / "moved")
    roots = {str(tmp_path / "old"): str(tmp_path / "new")}
    asked = open_corpus(tmp_path / "moved", roots=roots)
    assert asked.search("burrow")[0].root == str(tmp_path / "new" / "docs")
    assert asked.status().problems == ()
    unasked = open_corpus(tmp_path / "moved")
    assert unasked.search("burrow")[0].root == str(docs)
    assert [problem.kind for problem in unasked.status().problems] == ["root_missing"]
    embedder.take_encoded()
    report = asked.sync()
    assert (report.unchanged, report.removed, embedder.take_encoded()) == (1, 0, [])
    assert unasked.search("burrow")[0].root == str(tmp_path / "new" / "docs")  # written down


def folders(base: Path, *names: str) -> list[Path]:
    found = []
    for name in names:
        (base / name).mkdir(parents=True)
        (base / name / "a.txt").write_text(f"A burrow in {name}.")
        found.append(base / name)
    return found


def test_a_move_that_was_written_down_is_not_made_again(
    tmp_path: Path, open_corpus: Callable[..., Corpus]
) -> None:
    (old,) = folders(tmp_path, "docs")
    open_corpus(tmp_path / "index").sync(old)
    (tmp_path / "aside").mkdir()
    old.rename(tmp_path / "aside" / "docs")
    old.mkdir()
    (tmp_path / "aside" / "docs").rename(old / "deep")  # the new place lies inside the old one
    for _ in range(2):  # as a script would, with the same options each time
        corpus = open_corpus(tmp_path / "index", roots={str(old): str(old / "deep")})
        for _ in range(2):
            assert corpus.sync().unchanged == 1
            assert corpus.status().problems == ()
            assert corpus.search("burrow")[0].root == str(old / "deep")


def test_roots_may_change_places(tmp_path: Path, open_corpus: Callable[..., Corpus]) -> None:
    one, two = folders(tmp_path, "one", "two")
    corpus = open_corpus(tmp_path / "index")
    corpus.sync(one, two)
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    swapped = open_corpus(tmp_path / "index", roots={str(one): str(two), str(two): str(one)})
    assert swapped.sync().unchanged == 2
    assert {hit.root for hit in swapped.search("one", mode="lexical")} == {str(two)}


def test_a_root_is_not_moved_into_another(
    tmp_path: Path, open_corpus: Callable[..., Corpus]
) -> None:
    one, two = folders(tmp_path, "one", "two")
    open_corpus(tmp_path / "index").sync(one, two)
    with pytest.raises(InvalidInput, match="inside the other"):
        open_corpus(tmp_path / "index", roots={str(two): str(one / "two")}).sync()
    with pytest.raises(InvalidInput, match="no root of the index"):
        open_corpus(tmp_path / "index", roots={str(tmp_path / "three"): "/x"}).sync()


def test_a_link_is_no_place_of_its_own(tmp_path: Path, open_corpus: Callable[..., Corpus]) -> None:
    (old,) = folders(tmp_path, "old")
    open_corpus(tmp_path / "index").sync(old)
    old.rename(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    corpus = open_corpus(tmp_path / "index", roots={str(old): str(tmp_path / "link")})
    assert corpus.sync().unchanged == 1
    report = corpus.sync(tmp_path / "real")
    assert (report.unchanged, report.added, len(corpus.roots())) == (1, 0, 1)


def test_moved_roots_can_be_removed_from(
    tmp_path: Path, open_corpus: Callable[..., Corpus]
) -> None:
    (old,) = folders(tmp_path, "old")
    open_corpus(tmp_path / "index").sync(old)
    old.rename(tmp_path / "new")
    corpus = open_corpus(tmp_path / "index", roots={str(old): str(tmp_path / "new")})
    assert corpus.remove([str(tmp_path / "new" / "a.txt")]) == 1


def test_a_blank_name_is_not_the_working_directory(
    tmp_path: Path, open_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs,) = folders(tmp_path, "docs")
    corpus = open_corpus(tmp_path / "index")
    corpus.sync(docs)
    monkeypatch.chdir(docs)
    for blank in ("", " "):
        with pytest.raises(InvalidInput, match="blank"):
            corpus.remove([blank])
        with pytest.raises(InvalidInput, match="blank"):
            corpus.sync(blank)
    for odd in ("\ud800", "a\0b"):
        with pytest.raises(InvalidInput, match="no path"):
            corpus.remove([odd])
        with pytest.raises(InvalidInput, match="no path"):
            corpus.sync(odd)
    assert len(corpus.documents()) == 1


@pytest.mark.parametrize("call", ["unlink", "glob"])
def test_a_file_that_cannot_be_dropped_is_a_storage_error(
    filled: Corpus, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    filled.add([Document(id="late", text="A late burrow.")])  # a second FAISS file

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, fail)
        with pytest.raises(StorageError, match="Input/output error"):
            filled.compact()
    filled.compact()
    assert filled.verify().ok
