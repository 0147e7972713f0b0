"""Repair: derived files in place; of a damaged database, all that is whole into a new index."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragembed import Corpus, Document
from ragembed.config import ChunkingConfig
from ragembed.errors import IndexDamaged, IndexNotFound, NotAnIndex, RagembedError
from ragembed.index import scavenge
from ragembed.index.commit import Writer
from ragembed.index.lexical import DIRECTORY
from ragembed.index.salvage import RepairReport, repair
from ragembed.index.store import Store
from ragembed.index.transfer import TransferredDocument, read_document, write_documents
from ragembed.index.verify import verify

Sql = Callable[..., list[Any]]
Opener = Callable[..., Corpus]
Digest = Callable[[Path], dict[str, str]]
Documents = dict[tuple[int | None, bytes], TransferredDocument]
LONG = " ".join(f"Sentence {n} tells of thing{n} and of other{n}." for n in range(40))
CHUNKING = ChunkingConfig(passage=64, window=32, overlap=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, doubles: Any) -> Path:
    """An index of a folder of 20 files and of 20 texts; its database has over 50 pages."""
    home = tmp_path_factory.mktemp("made")
    (home / "docs").mkdir()
    for n in range(20):
        (home / "docs" / f"{n:02}.md").write_text(
            f"# File {n}\n\nA file about w{n}.\n\n{n} {LONG}\n"
        )
    with Corpus(home / "index", encoder=doubles.FakeEmbedder(), chunking=CHUNKING) as corpus:
        corpus.sync(home / "docs")
        corpus.add(
            [
                Document(
                    id=f"text{n}", text=f"Text {n}. {LONG if n % 5 == 0 else ''}", title=f"T{n}"
                )
                for n in range(20)
            ]
        )
    return home


@pytest.fixture(scope="module")
def before(made: Path) -> Documents:
    """Its documents."""
    return documents(made / "index")


@pytest.fixture
def damaged(made: Path, directory: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(made / "index", directory)
    return directory


@pytest.fixture
def new(directory: Path) -> Path:
    return directory.with_name("new")


def documents(directory: Path) -> Documents:
    """All documents of a sound index."""
    with closing(Store.open(directory)) as store:
        model = store.model()
        assert model is not None
        found = [read_document(store, model, d.id) for d in store.documents()]
        return {(d.row.root_id, d.row.path): d for d in found}


def same(one: TransferredDocument, other: TransferredDocument) -> bool:
    return (
        one.row == other.row
        and one.vectors.keys() == other.vectors.keys()
        and all(np.array_equal(vector, other.vectors[key]) for key, vector in one.vectors.items())
    )


def file(made: Path, n: int) -> str:
    return str(made / "docs" / f"{n:02}.md")


# -- in place ----------------------------------------------------------------------------------


def test_what_is_sound_is_left_alone(damaged: Path, new: Path, digest: Digest) -> None:
    before = digest(damaged)
    assert repair(damaged) == repair(damaged, new) == RepairReport()
    assert digest(damaged) == before and not new.exists()


@pytest.mark.parametrize(
    ("harm", "rebuilt"),
    [
        ("faiss gone", ("faiss",)),
        ("faiss flipped", ("faiss",)),
        ("row flipped", ("faiss",)),
        ("row and file", ("faiss",)),
        ("row of no name", ("faiss",)),
        ("other vectors", ("faiss",)),
        ("lexical flipped", ("lexical",)),
        ("both", ("faiss", "lexical")),
    ],
)
def test_derived_files_are_built_again(
    damaged: Path,
    before: Documents,
    new: Path,
    sql: Sql,
    put_bytes: Callable[[Path, bytes], None],
    open_corpus: Opener,
    harm: str,
    rebuilt: tuple[str, ...],
) -> None:
    (vectors, *_) = damaged.glob("vectors-*")
    if harm in ("faiss gone", "both", "row and file"):
        vectors.unlink()
    if harm == "faiss flipped":
        put_bytes(vectors, vectors.read_bytes()[:-1] + b"\xff")
    if harm in ("row flipped", "row and file"):
        sql("UPDATE checkpoint SET generation = generation + 1 WHERE id = 1")
    if harm == "row of no name":
        sql("UPDATE checkpoint SET file = CAST(x'ff' AS TEXT)")
    if harm == "other vectors":
        with Writer(damaged) as writer:
            with writer.transaction() as transaction:
                transaction.delete_document(1)
            writer.sweep_vectors()
        sql("DELETE FROM deletion WHERE kind = 'vector'")
        before = {key: before[key] for key in before if key != (1, b"00.md")}
    if harm in ("lexical flipped", "both"):
        term = next((damaged / DIRECTORY).glob("*.term"))
        put_bytes(term, term.read_bytes()[:-12] + b"\xff" * 12)
    assert verify(damaged)
    report = repair(damaged, new)
    assert report == RepairReport(rebuilt=rebuilt)  # type: ignore[arg-type]
    assert verify(damaged) == [] and not new.exists()
    after = documents(damaged)
    assert before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    assert open_corpus().search("w7", mode="lexical")[0].path == "07.md"
    names = sql("SELECT file FROM checkpoint")
    assert names and {path.name for path in damaged.glob("vectors-*")} == {n for (n,) in names}


def test_a_bad_file_of_a_model_not_in_use_is_dropped(
    damaged: Path, doubles: Any, sql: Sql, open_corpus: Opener
) -> None:
    old = {path.name for path in damaged.glob("vectors-*")}
    with open_corpus() as corpus:
        corpus.reembed(encoder=doubles.FakeEmbedder(fingerprint="fake-2"))
    kept = sql("SELECT file FROM checkpoint WHERE model_id = 2")
    for name in old:
        (damaged / name).unlink()
    assert repair(damaged).rebuilt == ("faiss",)
    assert verify(damaged) == []
    names = {name for (name,) in sql("SELECT file FROM checkpoint")}
    assert not names & old and kept[0][0] in names


# -- into a new index --------------------------------------------------------------------------


def test_a_damaged_database_is_never_mended_in_place(
    damaged: Path, new: Path, sql: Sql, digest: Digest
) -> None:
    sql("UPDATE passage SET text = upper(text) WHERE document_id = 3")
    before = digest(damaged)
    with pytest.raises(IndexDamaged, match=r"\(checksum, passage .* of 02.md\).*repair --into NEW"):
        repair(damaged)
    assert digest(damaged) == before
    new.mkdir()
    (new / "mine").touch()
    with pytest.raises(NotAnIndex):
        repair(damaged, new)
    with pytest.raises(NotAnIndex):
        repair(damaged, damaged)
    assert digest(damaged) == before and [path.name for path in new.iterdir()] == ["mine"]
    with pytest.raises(IndexNotFound):
        repair(new.with_name("nowhere"), new)


LOST_FILE = [
    "UPDATE passage SET text = upper(text) WHERE document_id = 3",
    "DELETE FROM passage WHERE id = (SELECT max(id) FROM passage WHERE document_id = 3)",
    "UPDATE source SET text = x'00' WHERE document_id = 3",
    "DELETE FROM reading WHERE passage_id = (SELECT min(id) FROM passage WHERE document_id = 3)",
    "UPDATE window SET end = end + 1 "
    "WHERE passage_id = (SELECT min(id) FROM passage WHERE document_id = 3)",
    "DELETE FROM vector WHERE id = (SELECT max(vector_id) FROM window w JOIN passage p "
    "ON p.id = w.passage_id WHERE document_id = 3)",
    "UPDATE document SET title = 'Another' WHERE id = 3",
    "UPDATE document SET tokens = tokens + 1 WHERE id = 3",
]


@pytest.mark.parametrize("statement", LOST_FILE)
def test_only_what_is_damaged_is_lost(
    damaged: Path,
    before: Documents,
    new: Path,
    made: Path,
    sql: Sql,
    digest: Digest,
    open_corpus: Opener,
    statement: str,
) -> None:
    sql("PRAGMA foreign_keys = OFF")
    sql(statement)
    untouched = digest(damaged)
    report = repair(damaged, new)
    assert (report.saved, report.lost, report.texts) == (39, (file(made, 2),), ())
    assert report.into == str(new) and report.rebuilt == ()
    assert digest(damaged) == untouched
    assert verify(new) == []
    after = documents(new)
    assert after.keys() == before.keys() - {(1, b"02.md")}
    assert all(same(before[key], after[key]) for key in after)
    assert [path.name for path in new.parent.glob(".new.*")] == []


def test_what_was_lost_is_read_again(
    damaged: Path, new: Path, made: Path, before: Documents, sql: Sql, open_corpus: Opener
) -> None:
    sql(LOST_FILE[0])
    repair(damaged, new)
    with open_corpus(new) as corpus:
        synced = corpus.sync()
        assert (synced.added, synced.unchanged, synced.skipped) == (1, 19, ())
        assert corpus.verify().ok
        (root,) = corpus.roots()
        assert root.path == os.fsencode(made / "docs")
    assert {key: d.row.text for key, d in documents(new).items()} == {
        key: d.row.text for key, d in before.items()
    }


def test_settings_go_along(damaged: Path, new: Path, sql: Sql) -> None:
    with Writer(damaged) as writer, writer.transaction() as transaction:
        transaction.set("faiss", "HNSW8,SQfp16")
    sql("UPDATE document SET title = 'Another' WHERE id = 3")
    repair(damaged, new)
    with closing(Store.open(damaged)) as old, closing(Store.open(new)) as store:
        for key in ("faiss", "chunking"):
            assert store.setting(key) == old.setting(key) is not None
        assert store.checkpoints(1)[0].kind == "HNSW8,SQfp16"
        assert store.history != old.history
        assert [(r.path, r.scan) for r in store.roots()] == [(r.path, r.scan) for r in old.roots()]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE vector SET data = zeroblob(32) WHERE id = (SELECT max(vector_id) FROM window w "
        "JOIN passage p ON p.id = w.passage_id WHERE document_id = 30)",
        "UPDATE passage SET heading = 'x' WHERE document_id = 30",
        "DELETE FROM window WHERE passage_id = (SELECT min(id) FROM passage WHERE document_id = 30)",
    ],
)
def test_a_text_that_is_whole_can_be_added_anew(
    damaged: Path, before: Documents, new: Path, sql: Sql, open_corpus: Opener, statement: str
) -> None:
    text9 = before[None, b"text9"]
    sql(statement)
    report = repair(damaged, new)
    (text,) = report.texts
    assert (report.saved, report.lost) == (39, ())
    assert (text.id, text.text, text.title) == ("text9", text9.row.text, text9.row.title)
    with open_corpus(new) as corpus:
        assert corpus.add(report.texts).added == 1
        assert corpus.verify().ok
    after = documents(new)[None, b"text9"]
    assert after.row.passages == text9.row.passages
    assert all(np.array_equal(after.vectors[key], text9.vectors[key]) for key in text9.vectors)


def test_a_text_that_is_not_whole_is_named(damaged: Path, new: Path, sql: Sql) -> None:
    sql("UPDATE source SET text = x'00' WHERE document_id = 30")
    sql("UPDATE document SET title = 'Another' WHERE id = 31")
    sql("DELETE FROM document WHERE id = 32")
    (packed,) = sql("SELECT text FROM source WHERE document_id = 33")[0]
    another = zlib.compress(zlib.decompress(packed).replace(b"Text", b"Test"))
    sql("UPDATE source SET text = ? WHERE document_id = 33", another)
    report = repair(damaged, new)
    assert (report.saved, report.texts) == (36, ())
    assert sorted(report.lost) == ["document 32", "text10", "text12", "text9"]
    assert verify(new) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE setting SET value = '{}' WHERE key = 'chunking'",
        "DELETE FROM setting WHERE key = 'chunking'",
        "UPDATE model SET fingerprint = 'x'",
    ],
)
def test_without_model_or_chunking_only_texts_are_saved(
    damaged: Path, new: Path, made: Path, sql: Sql, open_corpus: Opener, statement: str
) -> None:
    if "DELETE" in statement:
        sql("UPDATE document SET title = 'Another' WHERE id = 40")  # verify misses no chunking
    sql(statement)
    report = repair(damaged, new)
    assert report.saved == 0
    assert {text.id for text in report.texts} >= {f"text{n}" for n in range(19)}
    assert {file(made, n) for n in range(20)} <= set(report.lost)
    with open_corpus(new) as corpus:
        assert corpus.documents() == []
        assert corpus.add(report.texts).added == len(report.texts)
        assert corpus.sync().added == 20
        assert corpus.verify().ok


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE setting SET value = '7' WHERE key = 'model'",
        "UPDATE setting SET value = 'x' WHERE key = 'generation'",
        "DELETE FROM setting WHERE key = 'floor'",
    ],
)
def test_what_can_be_told_without_its_setting_is_saved(
    damaged: Path, new: Path, sql: Sql, statement: str
) -> None:
    sql(statement)
    report = repair(damaged, new)
    assert (report.saved, report.lost, report.texts) == (40, (), ())
    assert verify(new) == []


def test_files_of_a_root_that_cannot_be_read_are_lost(damaged: Path, new: Path, sql: Sql) -> None:
    sql("UPDATE root SET path = x'2f78'")
    report = repair(damaged, new)
    assert (report.saved, len(report.lost), report.texts) == (20, 20, ())
    assert report.lost[2] == "02.md"
    with closing(Store.open(new)) as store:
        assert store.roots() == []


def test_what_sqlite_cannot_open_says_so(damaged: Path, new: Path) -> None:
    database = damaged / "ragembed.db"
    database.write_bytes(b"\0" * 4096 + database.read_bytes()[4096:])
    with pytest.raises(IndexDamaged, match="repair --into NEW"):
        repair(damaged)
    with pytest.raises(IndexDamaged, match=r"SQLite cannot open .*restore a backup"):
        repair(damaged, new)
    assert not new.exists() and [path.name for path in new.parent.glob(".new.*")] == []


# -- pages -------------------------------------------------------------------------------------


def pages_of(directory: Path, *names: str) -> list[int]:
    """The numbers of a table's or index's pages, leaves and all, from 1."""
    marks = ",".join("?" * len(names))
    with closing(sqlite3.connect(directory / "ragembed.db")) as connection:
        rows = connection.execute(
            f"SELECT pageno FROM dbstat WHERE name IN ({marks}) AND pagetype = 'leaf'", names
        )
        return [page for (page,) in rows]


try:
    with closing(sqlite3.connect(":memory:")) as _connection:
        _connection.execute("SELECT 1 FROM dbstat")
    HAS_DBSTAT = True
except sqlite3.OperationalError:
    HAS_DBSTAT = False
DBSTAT = pytest.mark.skipif(not HAS_DBSTAT, reason="this SQLite has no dbstat")


def overwrite(directory: Path, page: int, content: bytes) -> None:
    with open(directory / "ragembed.db", "r+b") as stream:
        stream.seek((page - 1) * 4096)
        stream.write(content)


@DBSTAT
@pytest.mark.parametrize(
    "index",
    ["document_path", "passage_document", "window_vector", "sqlite_autoindex_vector_1"],
)
def test_a_damaged_index_costs_no_document(
    damaged: Path, before: Documents, new: Path, index: str
) -> None:
    for page in pages_of(damaged, index):
        overwrite(damaged, page, bytes(4096))
    report = repair(damaged, new)
    assert (report.saved, report.lost) == (40, ())
    after = documents(new)
    assert after.keys() == before.keys() and all(same(before[key], after[key]) for key in before)


@DBSTAT
@pytest.mark.parametrize(
    ("table", "which"),
    [
        ("passage", 0), ("passage", 1), ("passage", -1), ("vector", 1), ("vector", -1),
        ("window", 1), ("reading", 0), ("source", -1), ("document", 0), ("document", -1),
    ],
)  # fmt: skip
def test_reading_goes_on_behind_a_page_that_is_gone(
    damaged: Path, before: Documents, new: Path, table: str, which: int
) -> None:
    pages = pages_of(damaged, table)
    assert len(pages) > 1
    overwrite(damaged, sorted(pages)[which], bytes(4096))
    whole = readable(damaged, before)
    assert 0 < len(whole) < 40
    check(damaged, new, before, whole)


@DBSTAT
@pytest.mark.parametrize("table", ["passage", "window"])
def test_pages_that_changed_places_cost_no_more_than_themselves(
    damaged: Path, before: Documents, new: Path, table: str
) -> None:
    first, *_, last = sorted(pages_of(damaged, table))
    data = (damaged / "ragembed.db").read_bytes()
    for page, other in ((first, last), (last, first)):
        overwrite(damaged, page, data[(other - 1) * 4096 : other * 4096])
    whole = readable(damaged, before)
    assert 0 < len(whole) < 40
    check(damaged, new, before, whole)


def test_a_gap_of_many_ids_is_passed_over(
    damaged: Path, before: Documents, new: Path, sql: Sql
) -> None:
    """As a long life leaves it; and a page is gone, so that ids have to be tried."""
    sql("UPDATE sqlite_sequence SET seq = 5000000 WHERE name IN ('document', 'passage', 'vector')")
    with Writer(damaged) as writer:
        model = writer.store.model()
        assert model is not None
        late = [read_document(writer.store, model, 40)]
        write_documents(writer, model, [replace(d, row=replace(d.row, path=b"late")) for d in late])
    sql("PRAGMA wal_checkpoint(TRUNCATE)")
    if HAS_DBSTAT:
        overwrite(damaged, sorted(pages_of(damaged, "passage"))[0], bytes(4096))
    else:
        sql("UPDATE document SET title = 'Another' WHERE id = 3")
    started = time.monotonic()
    report = repair(damaged, new)
    assert time.monotonic() - started < 20
    assert report.saved and (None, b"late") in documents(new)


def test_definitions_of_tables_are_put_right(
    damaged: Path, before: Documents, new: Path, digest: Digest
) -> None:
    data = (damaged / "ragembed.db").read_bytes()
    at = data.index(b"CREATE TABLE passage (")
    (damaged / "ragembed.db").write_bytes(data[:at] + b"CREATE TABLE, assage" + data[at + 20 :])
    untouched = digest(damaged)
    report = repair(damaged, new)
    assert (report.saved, report.lost) == (40, ())
    assert all(same(before[key], document) for key, document in documents(new).items())
    assert digest(damaged) == untouched


def test_a_log_is_read_as_well(damaged: Path, new: Path, sql: Sql, open_corpus: Opener) -> None:
    with closing(sqlite3.connect(damaged / "ragembed.db")) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE document SET title = 'Another' WHERE id = 3")
        connection.commit()
        assert (damaged / "ragembed.db-wal").stat().st_size
        assert len(repair(damaged, new).lost) == 1


def readable(directory: Path, before: Documents) -> set[Any]:
    """The documents all of whose rows can still be looked up, one by one, and are what they were.

    An independent opinion: by primary keys from the sound index, compared as bytes.
    """
    with closing(scavenge._connect(directory / "ragembed.db")) as connection:
        found = set()
        for key, rows in ROWS.items():
            try:
                if all(
                    connection.execute(sql, values).fetchall() == due for sql, values, due in rows
                ):
                    found.add(key)
            except sqlite3.DatabaseError:
                continue
        return found & before.keys()


ROWS: dict[Any, list[tuple[str, tuple[Any, ...], list[Any]]]] = {}


@pytest.fixture(autouse=True)
def rows_of_all_documents(made: Path) -> None:
    """Fills ROWS, once."""
    if ROWS:
        return

    def look(sql: str, *values: Any) -> tuple[str, tuple[Any, ...], list[Any]]:
        return sql, values, connection.execute(sql, values).fetchall()

    with closing(scavenge._connect(made / "index" / "ragembed.db")) as connection:
        common = [
            look("SELECT * FROM model WHERE id = 1"),
            look("SELECT * FROM setting NOT INDEXED WHERE key = 'chunking'"),
        ]
        for id, root_id, path in connection.execute("SELECT id, root_id, path FROM document"):
            rows = [
                *common,
                look("SELECT * FROM document WHERE id = ?", id),
                look("SELECT * FROM source WHERE document_id = ?", id),
            ]
            if root_id is not None:
                rows.append(look("SELECT * FROM root WHERE id = ?", root_id))
            for (passage,) in connection.execute(
                "SELECT id FROM passage WHERE document_id = ?", (id,)
            ):
                rows.append(look("SELECT * FROM passage WHERE id = ?", passage))
                rows.append(look("SELECT * FROM reading WHERE passage_id = ?", passage))
                rows.append(look("SELECT * FROM window WHERE passage_id = ?", passage))
                for (vector,) in connection.execute(
                    "SELECT vector_id FROM window WHERE passage_id = ?", (passage,)
                ):
                    rows.append(look("SELECT * FROM vector WHERE id = ?", vector))
            ROWS[root_id, path] = rows


def check(damaged: Path, new: Path, before: Documents, whole: set[Any]) -> None:
    """Repair; what is whole has to be saved, what is saved has to be right, what is not, named."""
    report = repair(damaged, new)
    assert verify(new) == []
    after = documents(new) if report.saved else {}
    assert len(after) == report.saved
    for key, document in after.items():
        assert same(document, before[key]), key
    assert whole <= after.keys()
    for text in report.texts:
        assert text.text == before[None, text.id.encode()].row.text
        assert (None, text.id.encode()) not in after


def harmed(good: bytes, chance: random.Random) -> bytes:
    """A file with bits flipped, a page zeroed or in the place of another, or cut short."""
    content = bytearray(good)
    pages = len(good) // 4096
    kind = chance.choice(["flip", "flips", "zero", "cut", "swap"])
    if kind == "cut":
        del content[chance.randrange(len(good) // 4, len(good)) :]
    elif kind in ("zero", "swap"):
        a, b = (4096 * page for page in chance.sample(range(1, pages), 2))
        content[a : a + 4096] = bytes(4096) if kind == "zero" else good[b : b + 4096]
    else:
        for _ in range(1 if kind == "flip" else 20):
            content[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("seed", range(6))
def test_of_random_damage_all_that_is_whole_is_saved(
    damaged: Path, before: Documents, new: Path, made: Path, seed: int
) -> None:
    chance = random.Random(seed)
    good = (damaged / "ragembed.db").read_bytes()
    saved = 0
    for trial in range(3):
        (damaged / "ragembed.db").write_bytes(harmed(good, chance))
        target = new.with_name(f"new{trial}")
        try:
            if not verify(damaged):
                continue
        except RagembedError:
            continue  # it is not even known for an index of this version
        try:
            whole = readable(damaged, before)
            check(damaged, target, before, whole)
        except IndexDamaged as error:
            assert "cannot open" in str(error)
            assert not target.exists()
            continue
        saved += target.exists()
    assert saved or seed
