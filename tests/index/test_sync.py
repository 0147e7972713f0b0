"""Syncing folders: what changed is reported as exactly that, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ragembed import Corpus, Document, SyncReport
from ragembed.config import ScanConfig
from ragembed.errors import InvalidInput, MassDelete, ReadError

Digest = Callable[[Path], dict[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "docs"
    for n in range(4):
        put(path / f"a{n}.txt", f"alpha{n} stands in file {n}.")
        put(path / "sub" / f"b{n}.txt", f"beta{n} stands in file {n}.")
    return path


def put(file: Path, text: str, age: float = 60.0) -> None:
    """Write a file that was last changed `age` seconds ago."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    then = time.time() - age
    os.utime(file, (then, then))


def counts(report: SyncReport) -> dict[str, int]:
    """The counts that are not 0."""
    names = ("added", "updated", "renamed", "unchanged", "removed")
    found = {name: getattr(report, name) for name in names} | {"skipped": len(report.skipped)}
    return {name: count for name, count in found.items() if count}


def stored(corpus: Corpus) -> list[tuple[int | None, str]]:
    return [(document.root_id, document.path.decode()) for document in corpus.documents()]


def texts_of(corpus: Corpus) -> set[str]:
    with corpus.reading() as store:
        return {store.source_text(document.id) for document in store.documents()}


def skipped(corpus: Corpus) -> list[tuple[bytes, str]]:
    with corpus.reading() as store:
        return [(path, code) for _, path, code, _ in store.skipped()]


# -- what is reported ------------------------------------------------------------------------------


def test_each_kind_of_change_is_counted_once(
    corpus: Corpus, folder: Path, found: Callable[..., set[str]]
) -> None:
    assert counts(corpus.sync(folder)) == {"added": 8}
    assert counts(corpus.sync(folder)) == {"unchanged": 8}
    put(folder / "new.txt", "gamma is new.")
    put(folder / "a0.txt", "alpha0 was changed, and delta added.")
    (folder / "a1.txt").rename(folder / "sub" / "moved.txt")
    (folder / "a2.txt").unlink()
    (folder / "binary.txt").write_bytes(b"\0\1\2" * 100)
    report = corpus.sync(folder)
    assert counts(report) == {
        "added": 1, "updated": 1, "renamed": 1, "removed": 1, "unchanged": 5, "skipped": 1,
    }  # fmt: skip
    assert (report.passages, report.windows, report.embedded) == (2, 2, 2)
    assert found(corpus, "alpha1") == {"sub/moved.txt"}
    assert found(corpus, "delta") == {"a0.txt"}
    assert found(corpus, "alpha2") == set()
    assert corpus.verify().ok
    assert counts(corpus.sync()) == {"unchanged": 8, "skipped": 1}


def test_a_touched_file_is_unchanged(corpus: Corpus, folder: Path, embedder: Any) -> None:
    corpus.sync(folder)
    embedder.take_encoded()
    for file in folder.glob("*.txt"):
        os.utime(file)
    assert counts(corpus.sync(folder)) == {"unchanged": 8}
    assert embedder.take_encoded() == []


# -- roots -----------------------------------------------------------------------------------------


def test_a_file_may_be_a_root(corpus: Corpus, folder: Path) -> None:
    assert counts(corpus.sync(folder / "a0.txt")) == {"added": 1}
    assert [os.fsdecode(root.path) for root in corpus.roots()] == [str(folder)]
    put(folder / "a0.txt", "changed text")
    assert counts(corpus.sync()) == {"updated": 1}
    (folder / "a0.txt").unlink()
    assert counts(corpus.sync()) == {"removed": 1}


def test_syncing_a_subtree_prunes_only_there(corpus: Corpus, folder: Path) -> None:
    corpus.sync(folder)
    (folder / "a0.txt").unlink()
    put(folder / "new.txt", "not looked at")
    for n in range(4):
        (folder / "sub" / f"b{n}.txt").unlink()
    put(folder / "sub" / "c.txt", "new in the subtree")
    assert counts(corpus.sync(folder / "sub")) == {"removed": 4, "added": 1}
    assert len(corpus.roots()) == 1
    assert {path for _, path in stored(corpus)} == {
        "a0.txt", "a1.txt", "a2.txt", "a3.txt", "sub/c.txt",
    }  # fmt: skip


def test_a_sibling_with_the_same_beginning_is_another(corpus: Corpus, folder: Path) -> None:
    put(folder / "submarine" / "x.txt", "deep below")
    corpus.sync(folder)
    shutil.rmtree(folder / "submarine")
    assert counts(corpus.sync(folder / "sub")) == {"unchanged": 4}
    put(folder.parent / "docs2" / "x.txt", "another root")
    assert counts(corpus.sync(folder.parent / "docs2")) == {"added": 1}
    assert len(corpus.roots()) == 2


def test_syncing_one_root_never_prunes_another(corpus: Corpus, folder: Path) -> None:
    other = folder.parent / "other"
    for n in range(4):
        put(other / f"a{n}.txt", f"omega{n} stands elsewhere.")  # the same names
    corpus.add([Document(id="a0.txt", text="a text, and no file")])
    corpus.sync(folder)
    corpus.sync(other)
    (folder / "a0.txt").unlink()
    (other / "a1.txt").unlink()
    assert counts(corpus.sync(other)) == {"removed": 1, "unchanged": 3}
    assert len(stored(corpus)) == 1 + 8 + 3
    assert counts(corpus.sync()) == {"removed": 1, "unchanged": 10}
    assert (None, "a0.txt") in stored(corpus)


@pytest.mark.parametrize("inner", ["sub", "a0.txt"])
def test_a_root_inside_a_new_one_is_absorbed(
    corpus: Corpus, folder: Path, embedder: Any, inner: str
) -> None:
    first = counts(corpus.sync(folder / inner))["added"]
    embedder.take_encoded()
    report = corpus.sync(folder)
    assert counts(report) == {"unchanged": first, "added": 8 - first}
    assert len(embedder.take_encoded()) == 8 - first
    assert [os.fsdecode(root.path) for root in corpus.roots()] == [str(folder)]
    assert len(set(stored(corpus))) == 8
    assert counts(corpus.sync()) == {"unchanged": 8}
    assert corpus.verify().ok


@pytest.mark.parametrize("order", [("sub", "."), (".", "sub"), ("a0.txt", "."), ("sub", "sub")])
def test_overlapping_paths_in_one_call_are_one_root(
    corpus: Corpus, folder: Path, order: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    report = corpus.sync(*order)
    documents = 4 if order == ("sub", "sub") else 8
    assert report.added == documents
    assert len(corpus.documents()) == documents
    assert len(corpus.roots()) == 1


def test_a_known_root_named_beside_a_new_one_around_it(corpus: Corpus, folder: Path) -> None:
    corpus.sync(folder / "sub")
    assert counts(corpus.sync(folder, folder / "sub")) == {"added": 4, "unchanged": 4}
    assert len(corpus.roots()) == 1
    assert counts(corpus.sync(folder / "sub", folder)) == {"unchanged": 8}


def test_paths_that_are_not_there_are_an_error(corpus: Corpus, folder: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        corpus.sync(folder, folder / "nowhere")
    assert corpus.documents() == []
    with pytest.raises(InvalidInput, match="knows no folder"):
        corpus.sync()


def test_the_index_never_reads_itself(folder: Path, open_corpus: Callable[..., Corpus]) -> None:
    inside = open_corpus(folder / "index")
    assert counts(inside.sync(folder)) == {"added": 8}
    assert counts(inside.sync(folder, scan=ScanConfig(hidden=True))) == {"unchanged": 8}


# -- removal ---------------------------------------------------------------------------------------


def test_an_empty_root_is_taken_for_an_accident(corpus: Corpus, folder: Path) -> None:
    corpus.sync(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(MassDelete, match="allow-mass-delete") as caught:
        corpus.sync()
    assert counts(caught.value.report) == {}
    assert len(corpus.documents()) == 8
    assert counts(corpus.sync(allow_mass_delete=True)) == {"removed": 8}
    assert corpus.documents() == []
    assert corpus.verify().ok


def test_a_root_that_is_not_there_does_not_stop_the_others(corpus: Corpus, folder: Path) -> None:
    other = folder.parent / "other"
    put(other / "x.txt", "omega")
    corpus.sync(folder, other)
    folder.rename(folder.parent / "unmounted")
    put(other / "y.txt", "omicron")
    with pytest.raises(MassDelete) as caught:
        corpus.sync()
    assert counts(caught.value.report) == {"added": 1, "unchanged": 1}
    assert len(corpus.documents()) == 10
    (folder.parent / "unmounted").rename(folder)
    assert counts(corpus.sync()) == {"unchanged": 10}


def test_losing_more_than_half_is_taken_for_an_accident(corpus: Corpus, folder: Path) -> None:
    for n in range(12):
        put(folder / f"c{n:02}.txt", f"gamma{n}")
    corpus.sync(folder)
    for n in range(10):
        (folder / f"c{n:02}.txt").unlink()
    assert counts(corpus.sync()) == {"removed": 10, "unchanged": 10}  # half is not more than half
    put(folder / "z.txt", "one more")
    corpus.sync()
    for n in range(4):
        (folder / f"a{n}.txt").unlink()
        (folder / "sub" / f"b{n}.txt").unlink()
    put(folder / "c11.txt", "changed meanwhile")
    with pytest.raises(MassDelete, match="8 of 11") as caught:
        corpus.sync()
    assert counts(caught.value.report) == {"updated": 1, "unchanged": 2}
    assert len(corpus.documents()) == 11
    assert counts(corpus.sync(allow_mass_delete=True)) == {"removed": 8, "unchanged": 3}


def test_moving_everything_is_no_accident(corpus: Corpus, folder: Path) -> None:
    for n in range(12):
        put(folder / f"c{n:02}.txt", f"gamma{n}")
    corpus.sync(folder)
    for file in list(folder.glob("*.txt")):
        file.rename(folder / "sub" / file.name)
    assert counts(corpus.sync()) == {"renamed": 16, "unchanged": 4}


def test_without_prune_nothing_is_removed(corpus: Corpus, folder: Path) -> None:
    corpus.sync(folder)
    (folder / "a0.txt").unlink()
    assert counts(corpus.sync(prune=False)) == {"unchanged": 7}
    assert len(corpus.documents()) == 8
    assert counts(corpus.sync()) == {"removed": 1, "unchanged": 7}


def test_a_file_that_became_binary_is_dropped_and_named(
    corpus: Corpus, folder: Path, found: Callable[..., set[str]]
) -> None:
    corpus.sync(folder)
    (folder / "a0.txt").write_bytes(b"\x7fELF\0\0\0" * 50)
    report = corpus.sync()
    assert counts(report) == {"removed": 1, "unchanged": 7, "skipped": 1}
    assert [(s.root, s.path, s.code) for s in report.skipped] == [(str(folder), "a0.txt", "binary")]
    assert found(corpus, "alpha0") == set()
    assert skipped(corpus) == [(b"a0.txt", "binary")]
    put(folder / "a0.txt", "alpha0 is back")
    assert counts(corpus.sync()) == {"added": 1, "unchanged": 7}
    assert skipped(corpus) == []


def test_a_file_that_cannot_be_looked_at_is_kept(
    corpus: Corpus, folder: Path, found: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.sync(folder)
    put(folder / "a0.txt", "changed, but not to be read")

    def refused(*_: object) -> None:
        raise ReadError("permission", "no permission to read it")

    with monkeypatch.context() as patch:
        patch.setattr("ragembed.changes.read_bytes", refused)
        assert counts(corpus.sync()) == {"unchanged": 7, "skipped": 1}
    assert found(corpus, "alpha0") == {"a0.txt"}
    assert counts(corpus.sync()) == {"updated": 1, "unchanged": 7}


def test_removing_by_name(corpus: Corpus, folder: Path) -> None:
    corpus.add([Document(id="faq", text="a text")])
    corpus.sync(folder)
    with pytest.raises(InvalidInput, match="nowhere"):
        corpus.remove([str(folder / "sub"), "nowhere"])
    assert len(corpus.documents()) == 9
    assert corpus.remove([str(folder / "sub"), "faq"]) == 5
    assert corpus.remove([str(folder)]) == 4
    assert (corpus.documents(), corpus.roots()) == ([], [])
    assert corpus.verify().ok


# -- care ------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_run_does_and_changes_nothing(
    corpus: Corpus, folder: Path, directory: Path, digest: Digest, embedder: Any
) -> None:
    corpus.sync(folder)
    put(folder / "new.txt", "gamma is new.")
    put(folder / "a0.txt", "alpha0 was changed.")
    (folder / "a1.txt").rename(folder / "moved.txt")
    (folder / "a2.txt").unlink()
    (folder / "binary.txt").write_bytes(b"\0\1\2" * 100)
    before = digest(directory), digest(folder)
    embedder.take_encoded()
    rehearsed = corpus.sync(dry_run=True)
    assert (digest(directory), digest(folder)) == before
    assert embedder.take_encoded() == []
    real = corpus.sync()
    assert counts(rehearsed) == counts(real)
    for name in ("passages", "windows", "tokens", "unknown", "embedded", "reused"):
        assert getattr(rehearsed, name) == getattr(real, name), name


def test_a_dry_run_knows_of_roots_that_would_be_absorbed(corpus: Corpus, folder: Path) -> None:
    corpus.sync(folder / "sub")
    rehearsed = corpus.sync(folder, dry_run=True)
    assert counts(rehearsed) == counts(corpus.sync(folder))


def test_a_dry_run_refuses_what_a_run_refuses(corpus: Corpus, folder: Path) -> None:
    corpus.sync(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(MassDelete):
        corpus.sync(dry_run=True)


def test_a_change_right_after_being_read_is_noticed(
    corpus: Corpus, folder: Path, found: Callable[..., set[str]]
) -> None:
    """Same size, same time, same inode: only the clock says that it is in doubt."""
    file = folder / "a0.txt"
    now = time.time()
    put(file, "first version", age=0.0)
    os.utime(file, (now, now))
    corpus.sync(folder)
    before = file.stat()
    with file.open("r+") as opened:
        opened.write("other version")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (
        after.st_size, after.st_mtime_ns, after.st_ino,
    )  # fmt: skip
    assert counts(corpus.sync()) == {"updated": 1, "unchanged": 7}
    assert found(corpus, "other") == {"a0.txt"}


def test_old_unchanged_files_are_not_read(
    corpus: Corpus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.sync(folder)
    monkeypatch.setattr("ragembed.changes.read_bytes", lambda *_: pytest.fail("was read"))
    assert counts(corpus.sync()) == {"unchanged": 8}


def test_texts_are_never_touched_by_a_sync(corpus: Corpus, folder: Path) -> None:
    corpus.add(
        [Document(id="a0.txt", text="a text of that name"), Document(id="b", text="another")]
    )
    corpus.sync(folder)
    assert corpus.add([Document(id="b", text="another")]).unchanged == 1
    assert corpus.add([Document(id="b", text="changed")]).updated == 1
    assert "a text of that name" in texts_of(corpus)
    assert corpus.delete(["a0.txt", "nobody"]) == 1
    assert len(corpus.documents()) == 9
