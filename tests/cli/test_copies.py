"""backup, restore, export, import and repair as a person meets them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ragembed.cli.main import run

Result = tuple[int, str, str]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of two files and a text; encoded once."""
    import ragembed

    home = tmp_path_factory.mktemp("made")
    (home / "docs").mkdir()
    (home / "docs/weevils.md").write_text("# Beetles\n\nThe zyzzyva is a tropical weevil.\n")
    (home / "docs/ships.txt").write_text("A clipper sails to Valparaiso.\n")
    with ragembed.Corpus(home / ".ragembed") as corpus:
        corpus.sync(home / "docs")
        corpus.add([ragembed.Document(id="faq", text="Tea is a drink.")])
    return home


@pytest.fixture
def ragembed_(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    made: Path,
) -> Run:
    """Runs a command in a folder with a copy of the index; returns exit code, stdout, stderr."""
    shutil.copytree(made / ".ragembed", tmp_path / ".ragembed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAGEMBED_INDEX", raising=False)

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        code = run(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def harm(statement: str) -> None:
    with closing(sqlite3.connect(".ragembed/ragembed.db")) as connection:
        connection.execute(statement)
        connection.commit()


def paths(ragembed_: Run, *options: str) -> list[str]:
    return sorted(row["path"] for row in json.loads(ragembed_("ls", "--json", *options)[1]))


ALL = ["faq", "ships.txt", "weevils.md"]


def test_backup_and_restore(ragembed_: Run, tmp_path: Path) -> None:
    code, out, err = ragembed_("backup", "copy")
    assert (code, err) == (0, "") and out.startswith("3 documents, ") and out.endswith(": copy\n")
    assert ragembed_("verify", "--index", "copy")[0] == 0
    code, _, err = ragembed_("backup", "copy")
    assert code == 1 and "copy already holds" in err
    code, _, err = ragembed_("restore", "copy")
    assert code == 2 and "--replace" in err
    ragembed_("remove", "faq")
    code, out, _ = ragembed_("restore", "copy", "--replace", "--json")
    report = json.loads(out)
    assert (
        code == 0
        and report["documents"] == 3
        and report["directory"] == str(tmp_path / ".ragembed")
    )
    assert paths(ragembed_) == ALL
    assert paths(ragembed_, "--index", report["replaced"]) == ALL[1:]
    code, out, _ = ragembed_("restore", "copy", "--index", "elsewhere")
    assert (code, out) == (0, f"3 documents in {tmp_path / 'elsewhere'}\n")
    code, _, err = ragembed_("restore", "nowhere", "--index", "new")
    assert code == 1 and err == "error: there is no backup in nowhere\n"
    assert json.loads(ragembed_("backup", "another", "--json")[1])["documents"] == 3


def test_a_damaged_backup_is_not_restored(ragembed_: Run) -> None:
    harm("UPDATE passage SET text = upper(text)")
    ragembed_("backup", "copy")
    code, out, err = ragembed_("restore", "copy", "--index", "new")
    assert (code, out) == (4, "") and "nothing was restored" in err and err.count("\n") == 1
    assert not Path("new").exists()


def test_export_and_import(ragembed_: Run) -> None:
    code, out, err = ragembed_("export", "plain")
    assert (code, err) == (0, "") and out.startswith("3 documents, 3 vectors, ")
    code, out, _ = ragembed_("import", "plain", "--index", "new")
    assert (code, out) == (0, "3 added, 0 replaced in new\n")
    assert paths(ragembed_, "--index", "new") == ALL
    before = json.loads(ragembed_("search", "tropical beetle", "--json")[1])["hits"]
    after = json.loads(ragembed_("search", "tropical beetle", "--json", "--index", "new")[1])[
        "hits"
    ]
    assert [hit["text"] for hit in before] == [hit["text"] for hit in after]
    assert json.loads(ragembed_("import", "plain", "--json")[1])["replaced"] == 3
    assert ragembed_("import", "plain", "--index", "new", "--quiet")[1] == ""
    with open("plain/documents.jsonl", "a") as file:
        file.write("{}\n")
    code, _, err = ragembed_("import", "plain", "--index", "other")
    assert code == 2 and "documents.jsonl, line 4: the document lacks " in err
    assert not Path("other").exists()
    code, _, err = ragembed_("export", "plain")
    assert code == 1 and "plain already holds" in err


def test_repair_of_derived_files(ragembed_: Run) -> None:
    assert ragembed_("repair") == (0, "nothing is damaged\n", "")
    next(Path(".ragembed").glob("vectors-*")).unlink()
    assert ragembed_("verify")[0] == 4
    code, out, _ = ragembed_("repair", "--json")
    assert code == 0
    assert json.loads(out) == {
        "rebuilt": ["faiss"],
        "saved": 0,
        "lost": [],
        "texts": [],
        "into": "",
    }
    assert ragembed_("verify")[:2] == (0, "ok\n")


def test_repair_of_a_damaged_database(ragembed_: Run, made: Path) -> None:
    harm("UPDATE passage SET text = upper(text) WHERE text LIKE '%zyzzyva%'")
    code, out, err = ragembed_("repair")
    assert (code, out) == (4, "") and "ragembed repair --into NEW" in err
    code, out, err = ragembed_("repair", "--into", "new")
    assert code == 4 and err == f"lost: {made / 'docs/weevils.md'}\n"
    assert out.splitlines()[0].startswith("2 documents saved, 0 texts encoded again, 1 lost: ")
    assert paths(ragembed_, "--index", "new") == ALL[:2]
    assert ragembed_("index", "--index", "new")[1].startswith("1 added, 1 unchanged\n")
    assert ragembed_("verify", "--index", "new")[0] == 0


def test_texts_that_are_whole_are_encoded_again(ragembed_: Run) -> None:
    harm("UPDATE vector SET data = zeroblob(length(data)) WHERE id = 3")
    code, out, _ = ragembed_("repair", "--into", "new", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["saved"], report["texts"], report["lost"]) == (2, ["faq"], [])
    assert paths(ragembed_, "--index", "new") == ALL
    assert ragembed_("verify", "--index", "new")[0] == 0
    hits = json.loads(ragembed_("search", "drink", "-k", "1", "--json", "--index", "new")[1])[
        "hits"
    ]
    assert hits[0]["path"] == "faq"


@pytest.mark.parametrize("command", ["backup", "export"])
def test_without_an_index_there_is_nothing_to_copy(ragembed_: Run, command: str) -> None:
    shutil.rmtree(".ragembed")
    code, out, err = ragembed_(command, "copy")
    assert (code, out) == (1, "") and "ragembed index PATH" in err
    assert not Path("copy").exists()
    Path("empty").mkdir()
    assert ragembed_(command, "copy", "--index", "empty", "--quiet")[:2] == (0, "")
    assert Path("copy").is_dir()
