"""Export and import: the same but for ids, and nothing is trusted."""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragembed import Corpus, Document
from ragembed.config import ChunkingConfig, IndexConfig
from ragembed.errors import (
    IndexDamaged,
    IndexNotFound,
    InvalidInput,
    ModelMismatch,
    NotAnIndex,
    StorageError,
)
from ragembed.index import portable
from ragembed.index.portable import export_index, import_index
from ragembed.index.verify import verify

Sql = Callable[..., list[Any]]
Opener = Callable[..., Corpus]
Digest = Callable[[Path], dict[str, str]]
FILES = ("index.json", "documents.jsonl", "vectors.npy")
LONG = " ".join(f"Sentence {n} tells of thing{n} and of other{n}." for n in range(30))
CHUNKING = ChunkingConfig(passage=64, window=32, overlap=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, doubles: Any) -> tuple[Path, Path]:
    """An index and its export. Files of two roots (one of them a single file), and texts."""
    home = tmp_path_factory.mktemp("made")
    folder = home / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "guide.md").write_text(f"# Title\n\n## Heading\n\nWords under it.\n\n{LONG}\n")
    (folder / "deep" / "page.html").write_text("<title>Page</title><p>Schöne Straße 😀.</p>")
    (home / "alone.txt").write_text("A file that is a root.\n")
    if os.name == "posix":
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("Not UTF-8, this name.")
    with Corpus(home / "index", encoder=doubles.FakeEmbedder(), chunking=CHUNKING) as corpus:
        corpus.sync(folder, home / "alone.txt")
        corpus.add(
            [
                Document(
                    id="text", text=LONG, title="A title", metadata={"a": [1, {"b": None}], "ü": 2}
                ),
                Document(
                    id="other", text="Words under it.", metadata={"lone": "\ud800"}, replaced=1
                ),
            ]
        )
    export_index(home / "index", home / "export")
    return home / "index", home / "export"


@pytest.fixture
def source(made: tuple[Path, Path], directory: Path) -> Path:
    shutil.copytree(made[0], directory)
    return directory


@pytest.fixture
def exported(made: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(made[1], tmp_path / "export")
    return tmp_path / "export"


def lines(export: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (export / FILES[1]).read_bytes().splitlines()]


def put_lines(export: Path, records: list[Any]) -> None:
    (export / FILES[1]).write_text("".join(f"{json.dumps(record)}\n" for record in records))


def contents(folder: Path) -> list[bytes]:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    return [(folder / name).read_bytes() for name in FILES]


def test_out_in_and_out_again_is_the_same(
    source: Path, exported: Path, tmp_path: Path, open_corpus: Opener
) -> None:
    new, again = tmp_path / "new", tmp_path / "again"
    report = import_index(exported, new)
    assert (report.added, report.replaced) == (6 if os.name == "posix" else 5, 0)
    assert verify(new, "deep") == []
    out = export_index(new, again)
    assert contents(again) == contents(exported)
    assert out.documents == report.added and out.vectors == report.vectors
    assert out.bytes == sum(len(content) for content in contents(again))
    before, after = open_corpus(source), open_corpus(new)
    for query in ("Words under it", "thing7 other9", "Straße"):
        found = [{h.text for h in c.search(query)} for c in (before, after)]
        assert found[0] == found[1] and found[0]
    assert [(r.path, r.scan) for r in before.roots()] == [(r.path, r.scan) for r in after.roots()]
    synced = after.sync()
    assert (synced.unchanged, synced.embedded) == (report.added - 2, 0)


def test_what_is_exported_can_be_read_by_others(exported: Path) -> None:
    header = json.loads((exported / "index.json").read_bytes())
    vectors = np.load(exported / "vectors.npy", allow_pickle=False)
    records = lines(exported)
    assert (header["format"], header["version"]) == ("ragembed-export", 1)
    assert vectors.dtype == np.float16 and vectors.shape == (header["vectors"], 16)
    assert header["documents"] == len(records)
    places = [(-1 if r["root"] is None else r["root"], r["path"]) for r in records]
    assert places == sorted(places)
    used = set()
    for record in records:
        for passage in record["passages"]:
            assert record["text"][passage["start"] : passage["end"]].strip()
            used |= {row for _, _, row in passage["windows"]}
    assert used == set(range(len(vectors)))
    assert "Schöne Straße 😀" in (exported / FILES[1]).read_text()
    if os.name == "posix":
        (odd,) = [record for record in records if "path_b64" in record]
        assert base64.b64decode(odd["path_b64"]) == b"caf\xe9.txt"
        assert odd["path"] == "caf\\xe9.txt"


def test_equal_texts_share_a_vector(open_corpus: Opener, directory: Path, tmp_path: Path) -> None:
    with open_corpus() as corpus:
        corpus.add([Document(id=id, text="The same words.") for id in "abc"])
    report = export_index(directory, tmp_path / "export")
    assert (report.windows, report.vectors) == (3, 1)


def test_float32_vectors_stay_what_they_are(
    open_corpus: Opener, directory: Path, tmp_path: Path
) -> None:
    with open_corpus(index=IndexConfig(precision="float32")) as corpus:
        corpus.add([Document(id="a", text="Some words.")])
    export_index(directory, tmp_path / "export")
    assert np.load(tmp_path / "export" / "vectors.npy").dtype == np.float32
    import_index(tmp_path / "export", tmp_path / "new")
    export_index(tmp_path / "new", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "export")


def test_an_empty_index_comes_and_goes(
    open_corpus: Opener, directory: Path, tmp_path: Path
) -> None:
    open_corpus().close()
    assert export_index(directory, tmp_path / "export").documents == 0
    assert import_index(tmp_path / "export", tmp_path / "new").added == 0
    with open_corpus(tmp_path / "new") as corpus:
        assert corpus.documents() == [] and corpus.verify().ok


def test_an_import_replaces_what_has_the_same_place(
    exported: Path, open_corpus: Opener, tmp_path: Path
) -> None:
    with open_corpus(tmp_path / "other", chunking=CHUNKING) as corpus:
        corpus.add(
            [Document(id="text", text="It was another."), Document(id="mine", text="It stays.")]
        )
        id = next(d.id for d in corpus.documents() if d.path == b"text")
        report = import_index(exported, tmp_path / "other")
        assert report.replaced == 1
        assert corpus.verify().ok
        found = {d.path: d for d in corpus.documents()}
        assert found[b"text"].id == id and found[b"text"].title == "A title" and b"mine" in found
        assert "text" not in {h.path for h in corpus.search("another", mode="lexical")}
        again = import_index(exported, tmp_path / "other")
        assert (again.added, again.replaced) == (0, report.added + report.replaced)
        assert corpus.verify("deep").ok


@pytest.mark.parametrize("what", ["model", "chunking"])
def test_another_model_or_chunking_is_refused(
    exported: Path, open_corpus: Opener, tmp_path: Path, doubles: Any, digest: Digest, what: str
) -> None:
    other = tmp_path / "other"
    settings: dict[str, Any] = {"chunking": CHUNKING}
    settings |= (
        {"encoder": doubles.FakeEmbedder(fingerprint="fake-2")}
        if what == "model"
        else {"chunking": ChunkingConfig()}
    )
    with open_corpus(other, **settings) as corpus:
        corpus.add([Document(id="mine", text="It stays.")])
    before = digest(other)
    with pytest.raises(ModelMismatch, match="import it into a new index"):
        import_index(exported, other)
    assert digest(other) == before


def test_a_damaged_document_is_not_exported(source: Path, sql: Sql, tmp_path: Path) -> None:
    sql("UPDATE passage SET text = upper(text) WHERE document_id = (SELECT max(id) FROM document)")
    with pytest.raises(IndexDamaged, match=r"\(other: passage"):
        export_index(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_goes_into_a_new_place_or_nowhere(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(NotAnIndex):
        export_index(source, tmp_path / "mine")
    with pytest.raises(IndexNotFound):
        export_index(tmp_path / "nowhere", tmp_path / "out")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(portable.records, "to_line", full)
    with pytest.raises(StorageError, match="out: No space"):
        export_index(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_is_of_one_commit(
    source: Path, tmp_path: Path, open_corpus: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_corpus()
    monkeypatch.setattr("ragembed.index.schema.BUSY_TIMEOUT", 0.01)
    added: list[int] = []

    def step(count: int) -> None:
        if not added:
            writer.add([Document(id="zzz", text="Too late.")])
            writer.delete(["text"])
        added.append(count)

    real = portable._write_documents

    def late(*arguments: Any) -> Any:
        writer.add([Document(id="aaa", text="Too late as well.")])
        return real(*arguments)

    monkeypatch.setattr(portable, "_write_documents", late)
    report = export_index(source, tmp_path / "out", step)
    paths = [record["path"] for record in lines(tmp_path / "out")]
    assert not {"aaa", "zzz"} & set(paths) and "text" in paths
    assert sum(added) == report.documents == len(paths)


def test_an_import_that_dies_on_the_way_can_be_done_again(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragembed.index.transfer.BATCH_DOCUMENTS", 2)

    def die(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_index(exported, tmp_path / "new", die)
    assert verify(tmp_path / "new") == []
    report = import_index(exported, tmp_path / "new")
    assert report.replaced == 2
    export_index(tmp_path / "new", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(exported)


# -- nothing is trusted ------------------------------------------------------------------------


def refused(export: Path, directory: Path, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        import_index(export, directory)
    assert not directory.exists()


def set_in(record: dict[str, Any], place: tuple[Any, ...], value: object) -> None:
    for key in place[:-1]:
        record = record[key]
    record[place[-1]] = value


WRONG = [
    (("root",), 9, "root is 9"),
    (("root",), True, "root is True"),
    (("root",), -1, "root is -1"),
    (("path",), "", "path is blank"),
    (("path",), 7, "path is 7"),
    (("path",), "a\ud800", "surrogate"),
    (("path_b64",), "YQ==", "path alone would do"),
    (("path_b64",), "#", "not base64"),
    (("sha256",), "0" * 64, "not that of the text"),
    (("sha256",), "F" * 64, "64 hexadecimal"),
    (("size",), -1, "size is -1"),
    (("size",), 1.0, "size is 1.0"),
    (("mtime_ns",), 2**63, "mtime_ns is"),
    (("inode",), None, "inode is None"),
    (("checked_ns",), "1", "checked_ns is"),
    (("format",), None, "format is None"),
    (("encoding",), 1, "encoding is 1"),
    (("language",), [], "language is"),
    (("title",), None, "title is None"),
    (("metadata",), [], "metadata is"),
    (("metadata", "a"), float("inf"), "not a finite number"),
    (("replaced",), -1, "replaced is -1"),
    (("text",), "Another text.", "sha256 is not"),
    (("passages",), {}, "passages is"),
    (("passages", 0), [], "passage 0 is"),
    (("passages", 0, "start"), -1, "start is -1"),
    (("passages", 0, "start"), 10**6, "start is 1000000"),
    (("passages", 0, "end"), 0, "end is 0"),
    (("passages", 0, "end"), 10**6, "end is 1000000"),
    (("passages", 0, "end"), False, "end is False"),
    (("passages", 0, "lines"), [1], "a list of 2 is due"),
    (("passages", 0, "lines"), [2, 1], "line is"),
    (("passages", 0, "lines"), [1, 900], "line is 900"),
    (("passages", 0, "page"), 0, "page is 0"),
    (("passages", 0, "heading"), "H", "heading is 'H'"),
    (("passages", 0, "heading"), [1], "heading is 1"),
    (("passages", 0, "tokens"), -1, "tokens is -1"),
    (("passages", 0, "unknown"), 10**6, "unknown is 1000000"),
    (("passages", 0, "windows"), [], "no windows"),
    (("passages", 0, "windows", 0), [0, 5], "a list of 3 is due"),
    (("passages", 0, "windows", 0, 0), 10**6, "start of a window"),
    (("passages", 0, "windows", 0, 1), 10**6, "end of a window"),
    (("passages", 0, "windows", 0, 2), 10**6, "row of a vector"),
    (("passages", 0, "windows", 0, 2), -1, "row of a vector is -1"),
    (("passages", 0, "windows", 0, 2), 0.5, "row of a vector is 0.5"),
    (("surprise",), 1, "unknown keys: 'surprise'"),
    (("passages", 0, "surprise"), 1, "passage 0 has unknown keys"),
]


@pytest.mark.parametrize(("place", "value", "match"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_named_with_its_line(
    exported: Path, tmp_path: Path, place: tuple[Any, ...], value: object, match: str
) -> None:
    records = lines(exported)
    number = next(n for n, record in enumerate(records) if record["path"] == "text")
    set_in(records[number], place, value)
    put_lines(exported, records)
    refused(exported, tmp_path / "new", rf"documents.jsonl, line {number + 1}: .*{match}")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/etc/passwd", "not one inside its root"),
        ("../secret", "not one inside its root"),
        ("deep//x", "not one inside its root"),
        ("./x", "not one inside its root"),
        ("a\0b", "not one inside its root"),
    ],
)
def test_a_path_leads_nowhere_else(exported: Path, tmp_path: Path, path: str, match: str) -> None:
    records = lines(exported)
    next(r for r in records if r["path"] == "guide.md")["path"] = path
    put_lines(exported, records)
    refused(exported, tmp_path / "new", match)


def test_a_root_of_one_file_has_one_file(exported: Path, tmp_path: Path) -> None:
    records = lines(exported)
    next(r for r in records if r["path"] == "alone.txt")["path"] = "other.txt"
    put_lines(exported, records)
    refused(exported, tmp_path / "new", "not the root's only file")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "an object is due"),
        (b'{"a": NaN}', "not a finite"),
        (b'{"a": 1, "a": 2}', "comes twice"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 10_000, "not JSON|an object is due"),
    ],
)
def test_a_line_that_is_no_document(
    exported: Path, tmp_path: Path, line: bytes, match: str
) -> None:
    file = exported / "documents.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes())
    refused(exported, tmp_path / "new", rf"line 1: .*({match})")


def test_metadata_is_not_nested_without_end(exported: Path, tmp_path: Path) -> None:
    records = lines(exported)
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    records[0]["metadata"] = {"deep": deep}
    put_lines(exported, records)
    refused(exported, tmp_path / "new", "nested in more than 100 levels")


def test_no_document_comes_twice_and_none_is_missing(exported: Path, tmp_path: Path) -> None:
    records = lines(exported)
    put_lines(exported, [*records, records[2]])
    refused(exported, tmp_path / "new", f"line {len(records) + 1}: the document was there before")
    put_lines(exported, records[:-1])
    refused(exported, tmp_path / "new", f"holds {len(records) - 1} documents.* are due")


def test_one_text_has_one_vector(exported: Path, tmp_path: Path) -> None:
    records = lines(exported)
    (a,) = (r for r in records if r["path"] == "other")
    windows = a["passages"][0]["windows"]
    windows[0][2] = 0 if windows[0][2] else 1
    changed = [a if r["path"] == "other" else r for r in records]
    twin = copy.deepcopy(a) | {"path": "twin"}
    twin["passages"][0]["windows"][0][2] = 2
    put_lines(exported, [*changed, twin])
    refused(exported, tmp_path / "new", "are of the same text")


HEADERS = [
    (("format",), "zip", "format is ragembed-export"),
    (("version",), 2, "version is 2"),
    (("version",), "1", "version is '1'"),
    (("model",), None, "no model"),
    (("model", "dimension"), 0, "dimension is 0"),
    (("model", "dimension"), 17, "shape"),
    (("model", "precision"), "float64", "neither float16 nor float32"),
    (("model", "precision"), "float32", "float32 of shape .* is due"),
    (("model", "name"), 3, "name is 3"),
    (("model", "extra"), 3, "unknown keys"),
    (("chunking",), None, "chunking is None"),
    (("chunking", "window"), "32", "window is '32'"),
    (("chunking", "window"), 1, "window is 1"),
    (("chunking", "extra"), 1, "unknown keys"),
    (("roots",), {}, "roots is"),
    (("roots", 0, "path"), "relative", "root 0 is not"),
    (("roots", 0, "file"), "a/b", "root 0 is not"),
    (("roots", 0, "scan", "hidden"), "yes", "hidden is 'yes'"),
    (("roots", 0, "scan", "include"), [1], "include is"),
    (("roots", 0, "scan", "encoding"), "no\0such", "root 0: "),
    (("documents",), -1, "documents is -1"),
    (("documents",), 3, "3, .* are due"),
    (("vectors",), 1, "shape"),
    (("vectors",), 10**15, "shape"),
    (("extra",), 1, "unknown keys"),
]


@pytest.mark.parametrize(("place", "value", "match"), HEADERS, ids=lambda value: str(value)[:30])
def test_a_wrong_header_is_refused(
    exported: Path, tmp_path: Path, place: tuple[Any, ...], value: object, match: str
) -> None:
    header = json.loads((exported / "index.json").read_bytes())
    set_in(header, place, value)
    (exported / "index.json").write_text(json.dumps(header))
    refused(exported, tmp_path / "new", match)


def test_a_root_comes_once(exported: Path, tmp_path: Path) -> None:
    header = json.loads((exported / "index.json").read_bytes())
    header["roots"].append(header["roots"][0])
    (exported / "index.json").write_text(json.dumps(header))
    refused(exported, tmp_path / "new", "a root comes twice")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(exported: Path, tmp_path: Path, name: str) -> None:
    (exported / name).unlink()
    refused(exported, tmp_path / "new", f"is no export: there is no {name} in it")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0])
def test_vectors_are_finite_and_of_unit_length(
    exported: Path, tmp_path: Path, value: float
) -> None:
    vectors = np.load(exported / "vectors.npy")
    vectors[2, 5] = value
    np.save(exported / "vectors.npy", vectors)
    refused(exported, tmp_path / "new", "vectors.npy, from row 0 on: vector 2 of")


class Marked:
    """Says so when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("harm", ["short", "empty", "header", "zip", "pickle", "big-endian"])
def test_what_is_no_array_is_refused(exported: Path, tmp_path: Path, harm: str) -> None:
    file = exported / "vectors.npy"
    data, vectors = file.read_bytes(), np.load(file)
    if harm == "short":
        file.write_bytes(data[:-1])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "header":
        file.write_bytes(data.replace(b"'fortran_order'", b"'fortran_"))
    elif harm == "zip":
        with open(file, "wb") as stream:
            np.savez(stream, vectors=vectors)
    elif harm == "pickle":
        objects = np.array([Marked(tmp_path / "unpickled")], dtype=object)
        np.save(file, objects, allow_pickle=True)
    else:
        np.save(file, vectors.astype(">f2"))
    refused(exported, tmp_path / "new", "no array that can be read|is due")
    assert not (tmp_path / "unpickled").exists()


# Mutations of anything in a line: whatever is left is imported as it stands, or refused.


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for n in range(len(value)):
            yield from places(value[n], (*path, n))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 300),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["", "a\0", "\ud800", "../x", "0" * 64, [], {}, [[]], [1, 2, 3], {"a": 1}]),
)


def mutate(data: st.DataObject, record: dict[str, Any]) -> dict[str, Any]:
    for _ in range(data.draw(st.integers(1, 3))):
        all_places = [place for place in places(record) if place]
        place = data.draw(st.sampled_from(all_places))
        parent: Any = record
        for key in place[:-1]:
            parent = parent[key]
        match data.draw(st.sampled_from(["set", "drop", "swap", "add"])):
            case "set":
                parent[place[-1]] = data.draw(VALUES)
            case "drop":
                del parent[place[-1]]
            case "add" if isinstance(parent, dict):
                parent[data.draw(st.text(max_size=5))] = data.draw(VALUES)
            case "add":
                parent.append(data.draw(VALUES))
            case _:
                other = data.draw(st.sampled_from(list(places_of(parent))))
                parent[place[-1]], parent[other] = parent[other], parent[place[-1]]
    return record


def places_of(parent: Any) -> Iterator[Any]:
    return iter(parent) if isinstance(parent, dict) else iter(range(len(parent)))


@given(data=st.data())
@settings(
    max_examples=int(os.environ.get("RAGEMBED_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_mutated_line_is_refused_or_makes_a_sound_index(
    source: Path, exported: Path, digest: Digest, data: st.DataObject
) -> None:
    kept = (exported / FILES[1]).read_bytes()
    try:
        records = lines(exported)
        number = data.draw(st.integers(0, len(records) - 1))
        records[number] = mutate(data, records[number])
        put_lines(exported, records)
        before = digest(source)
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            new = Path(folder) / "new"
            try:
                import_index(exported, new)
            except InvalidInput as error:
                assert "documents.jsonl" in str(error)
                assert not new.exists()
                with pytest.raises(InvalidInput):
                    import_index(exported, source)
                assert digest(source) == before
            else:
                assert verify(new) == []
                export_index(new, Path(folder) / "again")
    finally:
        (exported / FILES[1]).write_bytes(kept)
