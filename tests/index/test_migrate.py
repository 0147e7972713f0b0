"""Old formats open: an index of every released format, as it was written."""

from __future__ import annotations

import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragembed import Corpus, Document
from ragembed.errors import IndexVersionError
from ragembed.index import migrate, schema
from ragembed.index.schema import FORMAT

FORMATS = Path(__file__).parent / "formats"
# What the index of format 1 held when it was written: path -> what its text says.
HELD = {
    "aardvark.md": "burrow aardvark",
    "badger.md": "digs a sett",
    "capybara.md": "burrow capybara",
    "cat.md": "burrow fossa",
    "dormouse.md": "burrow dormouse",
    "echidna.md": "burrow echidna",
    "faq-1": "Passages are cut at headings",
    "faq-3": "A checkpoint has a tail",
}


def unpack(version: int, directory: Path) -> None:
    with tarfile.open(FORMATS / f"format-{version}.tar.gz") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(directory.parent / "unpacked", filter="data")
        else:  # Python 3.10 before its security releases
            archive.extractall(directory.parent / "unpacked")
    shutil.move(directory.parent / "unpacked" / "index", directory)


@pytest.fixture(params=range(1, FORMAT))
def old(request: pytest.FixtureRequest, directory: Path) -> Path:
    directory.parent.mkdir(exist_ok=True)
    unpack(request.param, directory)
    return directory


def test_there_is_an_index_of_every_format_before_this_one() -> None:
    names = {f"format-{version}.tar.gz" for version in range(1, FORMAT)}
    assert {path.name for path in FORMATS.iterdir()} == names


def test_a_reader_brings_it_up_to_date(old: Path, open_corpus: Callable[..., Corpus]) -> None:
    corpus = open_corpus(old)
    assert schema.stored_format(old) == FORMAT
    assert {document.path.decode() for document in corpus.documents()} == set(HELD)
    for path, text in HELD.items():
        for mode in ("lexical", "dense"):
            assert path in {hit.path for hit in corpus.search(text, k=3, mode=mode)}  # type: ignore[arg-type]
    assert corpus.verify().ok
    faq = corpus.search("cut headings", k=1, mode="lexical")[0]
    assert (faq.title, dict(faq.metadata)) == ("Cutting", {"lang": "en", "n": 1})
    assert {name for name in old.iterdir() if name.name.startswith("lexical-1")} == set()


def test_a_writer_goes_on_with_it(
    old: Path, open_corpus: Callable[..., Corpus], embedder: Any
) -> None:
    corpus = open_corpus(old)
    corpus.delete(["faq-1"])
    corpus.add([Document(id="faq-4", text="A checkpoint has a tail.")])
    assert embedder.encoded == []  # the vector of that text is there
    assert {document.path.decode() for document in corpus.documents()} == {*HELD, "faq-4"} - {
        "faq-1"
    }
    assert corpus.verify().ok


def test_ids_stay_used(old: Path, open_corpus: Callable[..., Corpus]) -> None:
    with closing(sqlite3.connect(old / "ragembed.db")) as connection:
        used = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
    open_corpus(old).add([Document(id="new", text="A new gnu.")])
    with closing(sqlite3.connect(old / "ragembed.db")) as connection:
        for table in ("document", "passage", "vector"):
            assert connection.execute(f"SELECT max(id) FROM {table}").fetchone() == (
                used[table] + 1,
            )


def test_a_failure_in_the_middle_leaves_the_old_format_whole(
    old: Path, open_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = schema.stored_format(old)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "_COPY_1", (*migrate._COPY_1, "SELECT no_such_function()"))
        with pytest.raises(sqlite3.OperationalError):
            open_corpus(old)
    assert schema.stored_format(old) == version
    assert open_corpus(old).verify().ok


def test_damage_is_not_blessed(old: Path, open_corpus: Callable[..., Corpus]) -> None:
    with closing(sqlite3.connect(old / "ragembed.db")) as connection:
        (passage,) = connection.execute("SELECT min(id) FROM passage").fetchone()
        connection.execute(
            "UPDATE passage SET text = 'x' || substr(text, 2) WHERE id = ?", (passage,)
        )
        connection.execute("UPDATE document SET title = 'Another' WHERE id = 2")
        connection.execute("UPDATE vector SET data = zeroblob(32) WHERE id = 5")
        connection.commit()
    corpus = open_corpus(old)
    wheres = " ".join(problem.where for problem in corpus.verify().problems)
    assert f"passage {passage} " in wheres and "document 2" in wheres and "vector 5" in wheres


def test_where_nothing_can_be_written_it_is_said(
    old: Path, open_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragembed.errors import StorageError
    from ragembed.index import snapshot

    def refuse(*_: object) -> None:
        raise StorageError("read-only file system")

    monkeypatch.setattr(snapshot.Writer, "__enter__", refuse)
    with pytest.raises(IndexVersionError, match="older format"):
        open_corpus(old)


def test_a_newer_format_is_refused(filled: Corpus, directory: Path) -> None:
    filled.close()
    with closing(sqlite3.connect(directory / "ragembed.db")) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(IndexVersionError, match="upgrade"):
        Corpus(directory)
