"""Questions to an index that may be damaged, and what sound answers there are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from basics import opened

from ragembed import Corpus
from ragembed.errors import RagembedError
from ragembed.types import Hit

QUERIES = (
    "burrow", "aardvark", "the dormouse digs at night", "forest fruit", "capybara water badger",
)  # fmt: skip
MODES = ("lexical", "dense", "hybrid")
LISTINGS = ("documents", "status")


@dataclass(frozen=True, slots=True)
class Template:
    """A sound index: its folder, what each question is answered with (as it is, and once tantivy's
    files have been built again), everything that was ever stored, and the table of each page."""

    name: str
    index: Path
    answers: tuple[dict[str, str], ...]
    stored: frozenset[str]
    places: frozenset[str]
    pages: dict[int, str]


@dataclass(slots=True)
class Asked:
    """What an index said: the answers by question, the questions that were refused, and how many
    warnings had been logged when each question had been answered."""

    answers: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)
    hits: list[tuple[str, Hit]] = field(default_factory=list)

    def false_content(self, template: Template | None) -> list[str]:
        """Hits that say what was never stored, with the question, where there was no warning."""
        if template is None:
            return []
        return [
            f"{question}: {hit}"
            for question, hit in self.hits
            if not self.warned[question]
            and (
                _content(hit) not in template.stored
                or any(
                    repr((p.root, p.path, p.start, p.end, p.lines)) not in template.places
                    for p in hit.also
                )
            )
        ]


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def asked_of(index: Path, warnings: Warnings | None = None) -> Asked:
    """Ask an index everything; what is not an error of the library's own is raised."""
    asked = Asked()
    said = warnings.said if warnings is not None else []
    try:
        corpus = opened(index, create=False)
    except RagembedError as error:
        asked.refused["open"] = f"{type(error).__name__}: {error}"
        return asked
    with closing(corpus):
        ids: list[int] = []
        listed = 0
        for question, ask in _questions(corpus, ids):
            try:
                asked.answers[question], hits = ask()
                asked.hits += [(question, hit) for hit in hits]
            except RagembedError as error:
                asked.refused[question] = f"{type(error).__name__}: {error}"
            if question in LISTINGS:
                asked.warned[question] = len(said)
                listed = len(said)  # what a listing says is no warning to who searches
            else:
                asked.warned[question] = len(said) - listed
    return asked


def _questions(
    corpus: Corpus, ids: list[int]
) -> Iterator[tuple[str, Callable[[], tuple[str, Sequence[Hit]]]]]:
    def documents() -> tuple[str, Sequence[Hit]]:
        found = corpus.documents()
        ids.extend(document.id for document in found[::2])
        return repr(found), ()

    def status() -> tuple[str, Sequence[Hit]]:
        found = corpus.status()
        others = tuple(problem for problem in found.problems if problem.kind != "faiss")
        return repr(replace(found, disk_bytes=0, problems=others)), ()

    def search(query: str, mode: Any, filtered: bool) -> tuple[str, Sequence[Hit]]:
        k = 3 if query == QUERIES[1] else 100
        chosen = ids[: len(ids)] if filtered else None
        hits = corpus.search(query, k=k, mode=mode, documents=chosen).hits
        return repr([_answer(hit) for hit in hits]), hits

    # The listings first: what a search says later is not to count for them.
    yield "documents", documents
    yield "status", status
    for number, query in enumerate(QUERIES):
        for mode in MODES if number < 1 else MODES[number % 3 :][:1]:
            for filtered in (False, True) if number < 1 else (number % 2 == 0,):
                yield (
                    f"{query}, {mode}{', filtered' if filtered else ''}",
                    lambda q=query, m=mode, f=filtered: search(q, m, f),  # type: ignore[misc]
                )


def _content(hit: Hit) -> str:
    place = (hit.root, hit.path, hit.start, hit.end, hit.lines)
    said = (hit.page, hit.title, hit.heading, hit.text, dict(hit.metadata), hit.file_sha256)
    return repr((*place, *said))


def _answer(hit: Hit) -> str:
    figures = [None if f is None else round(f, 4) for f in (hit.score, hit.dense, hit.lexical)]
    others = sorted((p.root, p.path, p.start, p.end) for p in hit.also)
    said = (hit.rank, hit.document_id, hit.passage_id, figures, hit.highlights, hit.words, others)
    return f"{_content(hit)} {said}"
