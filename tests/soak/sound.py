"""Sound indexes for damage.py: with a past, made in processes of their own."""

from __future__ import annotations

import campaign  # isort: skip
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from asking import Template, asked_of
from basics import CHUNKING, SECOND, embedder

from ragembed import Corpus, Document
from ragembed.index import commit
from ragembed.index.disk import DATABASE

ANIMALS = ("aardvark", "badger", "capybara", "dormouse", "echidna", "fossa", "gnu", "hyrax")


def _text(animal: str, version: int) -> str:
    return (
        f"# The {animal}\n\nA {animal} lives in burrow {animal}{version}, near the forest.\n\n## Food\n\n"
        f"It eats {animal} food and fruit of the forest, every evening and every morning {version} "
        f"again. At night the {animal} digs.\n"
    )


def _document(animal: str, version: int) -> Document:
    metadata = {"kind": animal, "version": version}
    title = f"On the {animal}"
    return Document(id=f"t-{animal}", text=_text(animal, version), title=title, metadata=metadata)


class Builder:
    """Makes a template in a process that ends afterwards, and writes down all that it ever stored."""

    def __init__(self, index: Path, files: Path) -> None:
        self.index = index
        self.files = files
        self.stored: set[str] = set()
        self.places: set[str] = set()
        self.corpus = Corpus(index, encoder=embedder(), chunking=CHUNKING)

    def note(self) -> None:
        """Take note of what a search may find now."""
        roots = {root.id: os.fsdecode(root.path) for root in self.corpus.roots()}
        with self.corpus.reading() as store:
            rows = store.connection.execute(
                "SELECT d.root_id, d.path, p.start, p.end, p.first_line, p.last_line, p.page, d.title, "
                "p.heading, p.text, d.metadata, d.sha256 FROM passage p JOIN document d "
                "ON d.id = p.document_id"
            ).fetchall()
        for root, path, start, end, first, last, page, title, heading, text, metadata, sha in rows:
            lines = None if first is None else (first, last)
            place = (roots.get(root, ""), path.decode(), start, end, lines)
            said = (page, title, tuple(json.loads(heading)), text, json.loads(metadata), sha.hex())
            self.places.add(repr(place))
            self.stored.add(repr((*place, *said)))

    def write(self, name: str, version: int) -> None:
        file = self.files / f"{name}.md"
        file.write_text(_text(name, version))
        os.utime(file, (1e9 + version, 1e9 + version))

    def grow(self) -> None:
        """Updates and deletes, two FAISS files, several segments."""
        for number, animal in enumerate(ANIMALS[:5]):
            self.write(animal, number)
        self.corpus.sync(self.files)
        self.note()
        self.corpus.add([_document(animal, 1) for animal in ANIMALS[3:]])
        self.note()
        self.corpus.add([_document("gnu", 2), _document("fossa", 2)])
        self.note()
        self.corpus.delete(["t-hyrax"])
        (self.files / "badger.md").rename(self.files / "burrow.md")
        self.write("capybara", 7)
        self.corpus.sync(self.files)
        self.note()
        self.corpus.add([Document(id="short", text="A short word on burrows.")])
        self.note()
        assert len(list(self.index.glob("vectors-*"))) == 2, "two FAISS files are due"

    def leave_log(self) -> None:
        """Three commits that are in the log only."""
        commit.Writer._fold_log = lambda self: None  # type: ignore[method-assign]
        with self.corpus.reading():  # SQLite folds the log in when the last one closes
            self.corpus.add([_document("dormouse", 8), _document("ibex", 1)])
            self.note()
            self.corpus.delete(["t-echidna"])
            self.corpus.add([_document("ibex", 2)])
            self.note()
            self._leave()

    def _leave(self) -> None:
        copy = self.index.with_name("left")
        shutil.copytree(self.index, copy)
        (copy / f"{DATABASE}-shm").unlink()

    def finish(self) -> None:
        self.corpus.close()
        if (left := self.index.with_name("left")).exists():
            shutil.rmtree(self.index)
            left.rename(self.index)


def _grown(builder: Builder) -> None:
    builder.grow()


def _with_log(builder: Builder) -> None:
    builder.grow()
    builder.leave_log()


def _with_models(builder: Builder) -> None:
    builder.grow()
    builder.corpus.reembed(encoder=embedder(SECOND))
    builder.corpus.add([_document("gnu", 3)])
    builder.note()
    builder.leave_log()


KINDS: dict[str, Callable[[Builder], None]] = {
    "grown": _grown,
    "log": _with_log,
    "models": _with_models,
}


def made(folder: Path, name: str) -> Template:
    """Make a template, and ask it, in children of their own."""
    home = folder / name
    files, index = home / "files", home / "index"
    files.mkdir(parents=True)
    facts = home / "facts"

    def build() -> None:
        builder = Builder(index, files)
        KINDS[name](builder)
        builder.finish()
        facts.write_text(json.dumps([sorted(builder.stored), sorted(builder.places)]))

    def ask(copy: Path, to: Path, rebuilt: bool) -> None:
        shutil.copytree(index, copy)
        if rebuilt:
            for old in copy.glob("lexical-*"):
                shutil.rmtree(old)
        asked = asked_of(copy)
        if asked.refused or asked.false_content(None):
            raise RuntimeError(f"a sound index is not answered well: {asked}")
        to.write_text(json.dumps(asked.answers))

    campaign.in_child(build)
    answers = []
    for number in (0, 1):
        to = home / f"answers-{number}"
        # At one place for all trials: paths are part of some answers.
        campaign.in_child(lambda n=number, to=to: ask(folder / "index", to, bool(n)))  # type: ignore[misc]
        shutil.rmtree(folder / "index")
        answers.append(json.loads(to.read_text()))
    stored, places = json.loads(facts.read_text())
    copy = home / "copy"
    shutil.copytree(index, copy)
    with closing(sqlite3.connect(copy / DATABASE)) as connection:
        pages = dict(connection.execute("SELECT pageno, name FROM dbstat").fetchall())
    shutil.rmtree(copy)
    return Template(name, index, tuple(answers), frozenset(stored), frozenset(places), pages)
