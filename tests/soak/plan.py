"""Plans: what a child process does with an index, and an oracle of what may be stored afterwards.

A plan is a list of steps, each with the states it passes through, one for each of its commits. What
comes before `plan.begin()` is done once, into a template that every trial copies. A state is what the
index holds, as path or id -> text. Every text begins with a word that no other text has, its mark.

A state goes with the model that answers in it, by its fingerprint.

A step acknowledges each state it has reached with a line to a pipe, after the call that commits it
has returned (or `Corpus.sync` has called its listener). After a crash the index has to be in the
last acknowledged state or in one that the step in flight passes through.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from basics import FIRST, FORMAT_1, FORMATS, Place, embedder, mark_of, model_of, opened

from ragembed import Corpus, Document, reembed
from ragembed.errors import RagembedError
from ragembed.index import commit
from ragembed.indexer import Progress

State = dict[str, str]
CLEAN_ERROR = 3  # exit code of a child that met an error of the library's own
_TRIES = 2  # of a step that ends with such an error


class Bench:
    """What a step works with: the place, the open index, and the pipe of acknowledgements."""

    def __init__(self, place: Place, pipe: int, *, create: bool) -> None:
        self.place = place
        self.create = create
        self._pipe = pipe
        self._corpus: Corpus | None = None

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            self._corpus = opened(self.place.index, create=self.create)
        return self._corpus

    def close(self) -> None:
        corpus, self._corpus = self._corpus, None
        if corpus is not None:
            corpus.close()

    def acknowledge(self, step: int, stage: int) -> None:
        """Say that a state is stored; one unbuffered write."""
        os.write(self._pipe, f"{step} {stage}\n".encode())
        self.create = False

    def say(self, line: str) -> None:
        os.write(self._pipe, f"! {line}\n".encode())


@dataclass(frozen=True, slots=True)
class Step:
    """`run` gets a bench, and a function that takes the number of a stage that is reached.

    `model` answers once the last stage is reached. `spoilt` are kinds of problem that `verify` is right
    to report while the step is in flight, because the plan itself has removed a derived file. `purges`
    are texts of which nothing is left in any file afterwards.
    """

    name: str
    run: Callable[[Bench, Callable[[int], None]], object]
    stages: tuple[State, ...]
    model: str
    spoilt: frozenset[str] = frozenset()
    purges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expectation:
    """What may be found after some acknowledgements: one of `states`, the acknowledged one first, each
    with its model, and no mark of `dead`; `new`: not even the index itself has been acknowledged. Of
    the texts `purged` nothing may be left, and of `purging` nothing once the next writer is done, if
    they are not stored."""

    states: list[State]
    models: list[str]
    dead: list[str]
    acknowledged: int
    new: bool
    spoilt: frozenset[str]
    purged: tuple[str, ...] = ()
    purging: tuple[str, ...] = ()


class Plan:
    """The steps of a workload, and the state after each."""

    def __init__(
        self, state: State | None = None, files: State | None = None, model: str = FIRST
    ) -> None:
        """`state` is what the index holds and `files` what the folder holds at the beginning; `model`
        answers then."""
        self.steps: list[Step] = []
        self.start = dict(state or {})
        self.state = dict(self.start)
        self.model = self.start_model = model
        self.files = dict(files or {})
        self.begun = 0
        self.serial = 0
        self.prefix = "mark"
        self.spoilt: frozenset[str] = frozenset()  # from here on, see Step
        self.texts: list[str] = list(self.start.values())

    # -- writing the plan ----------------------------------------------------------------------

    def begin(self) -> None:
        """What follows is the run; what came before makes the template."""
        self.begun = len(self.steps)
        self.start, self.start_model = dict(self.state), self.model

    def text(self, words: int) -> str:
        """A new text with a mark of its own; 40 words make several passages."""
        self.serial += 1
        name = f"{self.prefix}{self.serial}"
        text = " ".join([f"{name}q", *(f"{name}n{n}." for n in range(words))])
        self.texts.append(text)
        return text

    def step(self, name: str, run: Callable[[Bench], object], *stages: State) -> None:
        """Any other step. `stages` are the states it passes through; none: it changes nothing."""
        self._put(name, lambda bench, _: run(bench), stages or (self.state,))

    def add(self, *ids: str, words: int = 1) -> None:
        """Store texts, or give known ones a new content."""
        new = {id: self.text(words) for id in ids}
        documents = [Document(id=id, text=text) for id, text in new.items()]

        def run(bench: Bench, reach: Callable[[int], None]) -> None:
            def listen(progress: Progress) -> None:
                if progress.committed:  # before the writer has closed, which makes more durable
                    reach(0)

            bench.corpus.add(documents, listener=listen)

        self._put(f"add {' '.join(ids)}", run, [self.state | new])
        self.spoilt = frozenset()

    def delete(self, *ids: str) -> None:
        left = {id: text for id, text in self.state.items() if id not in ids}
        self._put(f"delete {' '.join(ids)}", lambda b, _: b.corpus.delete(ids), [left])
        self.spoilt = frozenset()

    def remove(self, *ids: str) -> None:
        """As the command line does it; a step that is tried again may find nothing to remove."""
        left = {id: text for id, text in self.state.items() if id not in ids}

        def run(bench: Bench, _: Callable[[int], None]) -> None:
            stored = {document.path.decode() for document in bench.corpus.documents()}
            if known := [id for id in ids if id in stored]:
                bench.corpus.remove(known)

        self._put(f"remove {' '.join(ids)}", run, [left])

    def sync(
        self,
        *,
        write: tuple[str, ...] = (),
        rename: dict[str, str] | None = None,
        remove: tuple[str, ...] = (),
        words: int = 1,
    ) -> None:
        """Change files (a name is new, or never used before), and bring the index into step.

        New and altered files are one commit, moved and gone ones the next.
        """
        new = {name: self.text(words) for name in write}
        moves = dict(rename or {})
        disk = {moves.get(name, name): text for name, text in self.files.items()} | new
        disk = {name: text for name, text in disk.items() if name not in remove}
        stored = {name: text for name, text in self.state.items() if name.endswith(".txt")}
        texts = {name: text for name, text in self.state.items() if name not in stored}
        gone = {text for name, text in stored.items() if name not in disk}
        batch = {
            name: text
            for name, text in disk.items()
            if stored.get(name) != text and not (name not in stored and text in gone)
        }

        def run(bench: Bench, reach: Callable[[int], None]) -> None:
            for old, name in moves.items():
                if (bench.place.files / old).exists():
                    (bench.place.files / old).rename(bench.place.files / name)
            for name, text in new.items():
                (bench.place.files / name).write_text(text)
            for name in remove:
                (bench.place.files / name).unlink(missing_ok=True)

            def listen(progress: Progress) -> None:
                kinds = {kind for kind, _ in progress.committed}
                if kinds & {"added", "updated"}:
                    reach(0)
                elif kinds:
                    reach(1)

            bench.corpus.sync(bench.place.files, allow_mass_delete=True, listener=listen)

        self._put("sync", run, [texts | stored | batch, texts | disk])
        self.spoilt = frozenset()
        self.files = disk

    def search(self) -> None:
        """Ask; whatever is behind is brought up to date by that."""
        query = mark_of(next(iter(self.state.values()), "nothing"))
        self.step("search", lambda bench: bench.corpus.search(query, k=3, mode="lexical"))
        self.spoilt = frozenset()

    def reembed(self, model: str) -> None:
        """Another model for the index, built in many commits of which only the last one shows."""

        def run(bench: Bench, _: Callable[[int], None]) -> None:
            reembed._BATCH = 2
            bench.corpus.reembed(encoder=embedder(model))

        self.model = model
        self._put(f"reembed {model}", run, [self.state])

    def rollback(self, model: str) -> None:
        """Back to the model before; done again it would be forth."""

        def run(bench: Bench, _: Callable[[int], None]) -> None:
            reembed._BATCH = 2
            if model_of(bench.corpus) != model:
                bench.corpus.rollback(encoder=embedder(model))

        self.model = model
        self._put(f"rollback to {model}", run, [self.state])

    def forget_models(self) -> None:
        """Drop the vectors of every model but the one that answers."""
        self.step("forget models", lambda bench: bench.corpus.forget_models())

    def compact(self) -> None:
        """Give space back."""
        self.step("compact", lambda bench: bench.corpus.compact())

    def free_pages(self, limit: int) -> None:
        """From here on a writer rewrites a database that has so many bytes of free pages."""

        def run(_: Bench) -> None:
            commit.FREE_BYTES = limit

        self.step(f"free pages {limit}", run)

    def purge(self, *ids: str) -> None:
        """Remove texts so that nothing is left of them. Tried again, there may be nothing to remove:
        then whoever writes next finishes what was begun."""
        left = {id: text for id, text in self.state.items() if id not in ids}

        def run(bench: Bench, _: Callable[[int], None]) -> None:
            stored = {document.path.decode() for document in bench.corpus.documents()}
            if known := [id for id in ids if id in stored]:
                bench.corpus.remove(known, purge=True)
            else:
                bench.corpus.delete(())

        gone = tuple(text for id, text in self.state.items() if id in ids)
        self._put(f"purge {' '.join(ids)}", run, [left], gone)

    def unpack(self, version: int) -> None:
        """An index as an older format had it."""

        def run(bench: Bench) -> None:
            with tarfile.open(FORMATS / f"format-{version}.tar.gz") as archive:
                if hasattr(tarfile, "data_filter"):
                    archive.extractall(bench.place.store, filter="data")
                else:  # Python 3.10 before its security releases
                    archive.extractall(bench.place.store)

        self.texts += FORMAT_1.values()
        self.step(f"unpack format {version}", run, FORMAT_1)

    def reopen(self) -> None:
        """Close the index; the next step opens it again."""
        self.step("reopen", lambda bench: (bench.close(), bench.corpus))

    def lose_lexical(self) -> None:
        """Someone removes tantivy's files while the index is closed."""

        def run(bench: Bench) -> None:
            bench.close()
            with suppress(OSError):  # a fault that hits this one is not the library's to bear
                for folder in bench.place.index.glob("lexical-*"):
                    shutil.rmtree(folder)

        self.spoilt = frozenset({"lexical"})  # until someone writes, or asks
        self.step("lose the lexical files", run)

    def _put(
        self,
        name: str,
        run: Callable[[Bench, Callable[[int], None]], object],
        stages: Any,
        purges: tuple[str, ...] = (),
    ) -> None:
        states = tuple(dict(stage) for stage in stages)
        self.steps.append(Step(name, run, states, self.model, self.spoilt, purges))
        self.state = dict(self.steps[-1].stages[-1])

    # -- carrying it out -----------------------------------------------------------------------

    def prepare(self, place: Place) -> None:
        """Do what comes before the beginning; ends the process, which has to be a child."""
        with open(os.devnull, "wb") as nowhere:
            bench = Bench(place, nowhere.fileno(), create=True)
            for number, step in enumerate(self.steps[: self.begun]):
                step.run(bench, lambda stage, n=number: bench.acknowledge(n, stage))
            bench.close()

    def run(self, place: Place, pipe: int) -> None:
        """Do the rest, with acknowledgements. A step that fails with an error of the library's own
        is tried again; if it keeps failing the process ends with CLEAN_ERROR."""
        bench = Bench(place, pipe, create=self.begun == 0 and not self.start)
        for number, step in enumerate(self.steps[self.begun :], start=self.begun):
            for last in (False,) * (_TRIES - 1) + (True,):
                try:
                    step.run(bench, lambda stage, n=number: bench.acknowledge(n, stage))
                    break
                except RagembedError as error:
                    bench.say(f"{type(error).__name__} {number} {error}"[:2000])
                    bench.close()
                    if last:
                        raise SystemExit(CLEAN_ERROR) from error
            bench.acknowledge(number, len(step.stages) - 1)
        bench.close()

    # -- the oracle ----------------------------------------------------------------------------

    def after(self, reported: bytes) -> Expectation:
        """What these acknowledgements allow; a line without its end was never acknowledged."""
        lines = reported.split(b"\n")[:-1]
        pairs = [tuple(map(int, line.split())) for line in lines if not line.startswith(b"!")]
        number, stage = pairs[-1] if pairs else (self.begun - 1, -1)
        if stage < 0:
            states = [(self.start, self.start_model)]
        else:
            states = self._reached(number, stage)
        spoilt, purging = self.spoilt, tuple[str, ...]()
        done = number + 1
        if stage >= 0 and stage < len(self.steps[number].stages) - 1:
            done = number
        elif done < len(self.steps):
            states += self._reached(done, 0)
        if done < len(self.steps):
            spoilt, purging = self.steps[done].spoilt, self.steps[done].purges
        states = _distinct(states)
        return Expectation(
            states=[state for state, _ in states],
            models=[model for _, model in states],
            dead=self._dead(states[0][0]),
            acknowledged=len(pairs),
            new=not (pairs or self.begun or self.start),
            spoilt=spoilt,
            purged=tuple(text for step in self.steps[:done] for text in step.purges),
            purging=purging,
        )

    def _reached(self, number: int, stage: int) -> list[tuple[State, str]]:
        """The states of a step from a stage on. Only the last can have another model than the one
        before, and no step that changes the model has more than one."""
        step = self.steps[number]
        return [(state, step.model) for state in step.stages[stage:]]

    def _dead(self, state: State) -> list[str]:
        """The marks of texts that are not in a state, and must not be found."""
        alive = set(state.values())
        return [mark_of(text) for text in self.texts if text not in alive]


def _distinct(states: list[tuple[State, str]]) -> list[tuple[State, str]]:
    found: list[tuple[State, str]] = []
    for state in states:
        if state not in found:
            found.append(state)
    return found
