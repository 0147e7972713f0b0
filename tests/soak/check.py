"""The judge: does an index hold what an oracle allows, and does every way of asking say the same?

Judging is done in a forked child with a time limit, as a new process would do it, because a
damaged index may end or hang whoever opens it: that is a violation like any other. The caller must
not have searched with FAISS before, since a fork after its threads have begun hangs.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from basics import mark_of, model_of, opened
from plan import Expectation, State
from traces import traces_of

from ragembed import Corpus, Document

_PATIENCE = 60.0  # seconds for one index
_JUDGES_OWN = "judge"
_LIMIT = 1000  # passages that an index of a campaign never reaches


class Violation(AssertionError):
    """A promise that did not hold."""


@dataclass(frozen=True, slots=True)
class Case:
    """An index to be judged.

    `states` may be stored, each with the model in the same place of `models`; `dead` are marks that must
    not be found, unless they live in the state that is. `create`: there may be no index yet. `spoilt`:
    kinds of problem that `verify` may report at first, because a power cut may have left a derived file
    torn, or a full disk none. Of the texts `purged` no file may hold anything, and of `purging` none
    after the next writer, if they are not stored.
    """

    index: Path
    states: Sequence[State]
    models: Sequence[str]
    dead: Sequence[str] = ()
    create: bool = False
    spoilt: frozenset[str] = frozenset()
    purged: Sequence[str] = ()
    purging: Sequence[str] = ()

    @classmethod
    def of(cls, index: Path, due: Expectation, spoilt: frozenset[str] | None = None) -> Case:
        """What a plan expects of an index; `spoilt` in place of the plan's own."""
        return cls(
            index, due.states, due.models, due.dead, due.new,
            due.spoilt if spoilt is None else spoilt, due.purged, due.purging,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """`violation` is empty where all is well; `state` is the place of the state that is stored.
    `reported` are the kinds of problem that `verify` was right to name."""

    violation: str
    state: int = 0
    reported: tuple[str, ...] = ()


def judge(case: Case) -> tuple[int, list[str]]:
    """Judge one index in this process; it has one text more afterwards.

    Returns the place of the state that is stored, and the kinds of problem that were reported and
    allowed.

    Raises:
        Violation: a promise does not hold.
    """
    _purged(case.index, case.purged)
    with closing(opened(case.index, create=case.create)) as corpus:
        reported = sorted({problem.kind for problem in corpus.verify().problems})
        if set(reported) - case.spoilt:
            raise Violation(f"verify: {corpus.verify().problems[:5]}")
        found = _stored_state(corpus, case.states, case.models)
        state = case.states[found]
        _search(corpus, state, case.dead)
    # What a crash left must not stand in the way of the next writer.
    text = f"{_JUDGES_OWN}word {_JUDGES_OWN}filler."
    with closing(opened(case.index, create=False)) as corpus:
        corpus.add([Document(id=_JUDGES_OWN, text=text)])
        after = {**state, _JUDGES_OWN: text}
        _stored_state(corpus, [after], [case.models[found]])
        if problems := corpus.verify().problems:
            raise Violation(f"verify after one more text: {problems[:5]}")
        _search(corpus, after, case.dead)
    gone = [text for text in case.purging if text not in state.values()]
    _purged(case.index, [*case.purged, *gone])
    return found, reported


def judged(cases: Sequence[Case], errors: Path | None = None) -> list[Verdict]:
    """Judge indexes one after the other in a forked child, a new one after each that ends it."""
    verdicts: list[Verdict] = []
    while len(verdicts) < len(cases):
        verdicts += _judged_by_one(cases[len(verdicts) :], errors or Path(os.devnull))
    return verdicts


def _judged_by_one(cases: Sequence[Case], errors: Path) -> list[Verdict]:
    """The verdicts of one child; at least one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_judge(cases, writing, errors)
    os.close(writing)
    verdicts: list[Verdict] = []
    rest = b""
    deadline = time.monotonic() + _PATIENCE
    hangs = False
    while True:
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            hangs = True
            os.kill(child, signal.SIGKILL)
            break
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            violation, state, reported = json.loads(line)
            verdicts.append(Verdict(violation, state, tuple(reported)))
            deadline = time.monotonic() + _PATIENCE
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if len(verdicts) < len(cases):
        said = errors.read_text(errors="replace")[-1500:] if errors.is_file() else ""
        how = f"hangs for {_PATIENCE:.0f} s" if hangs else f"ended with {code}"
        verdicts.append(Verdict(f"the process that opens the index {how}: {said}"))
    return verdicts


def _be_judge(cases: Sequence[Case], pipe: int, errors: Path) -> None:
    try:
        descriptor = os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 2)
        for case in cases:
            violation, state, reported = "", 0, list[str]()
            try:
                state, reported = judge(case)
            except Violation as error:
                violation = str(error)
            except Exception:  # whatever the library raises here is a violation
                violation = traceback.format_exc()[-2500:]
            line = json.dumps([violation, state, reported]).encode() + b"\n"
            while line:
                line = line[os.write(pipe, line) :]
        os._exit(0)
    finally:
        os._exit(72)


def _purged(index: Path, texts: Sequence[str]) -> None:
    """Nothing may be left of a text in any file."""
    for text in texts:
        if left := traces_of(text, index):
            raise Violation(f"{mark_of(text)} was purged, and there is {left[:5]}")


def _stored_state(corpus: Corpus, states: Sequence[State], models: Sequence[str]) -> int:
    """Which of the states is stored with its model, every text compared in full."""
    with corpus.reading() as store:
        documents = store.documents()
        stored = {d.path.decode(): store.source_text(d.id) for d in documents}
    if len(stored) != len(documents):
        raise Violation(f"documents that are stored twice: {[d.path for d in documents]}")
    for document in documents:
        text = stored[document.path.decode()]
        if document.facts.sha256 != hashlib.sha256(text.encode()).digest():
            raise Violation(f"{document.path!r} has the hash of another text")
    answers = model_of(corpus)
    for number, (state, model) in enumerate(zip(states, models, strict=True)):
        if stored == state and answers in ((model, "") if not state else (model,)):
            return number
    raise Violation(
        f"stored is {_outline(stored)} with the model {answers!r}, and due is one of "
        f"{[_outline(state) for state in states]} with {models}"
    )


def _search(corpus: Corpus, state: State, dead: Sequence[str]) -> None:
    """Every mark finds its text and nothing else, and every passage is found by both ways."""
    _search_words(corpus, state, dead)
    _search_vectors(corpus, state)


def _search_words(corpus: Corpus, state: State, dead: Sequence[str]) -> None:
    for path, text in state.items():
        mark = mark_of(text)
        hits = corpus.search(mark, k=10, mode="lexical")
        due = [path] * (1 if text.startswith(mark) else max(1, len(hits)))  # an old text repeats it
        if [hit.path for hit in hits] != due or any(hit.also for hit in hits):
            raise Violation(f"{mark} of {path} is found in {[hit.path for hit in hits]}")
        for hit in hits:
            first = hit.start == 0 or not text.startswith(mark)
            if not first or mark not in hit.text or text[hit.start : hit.end] != hit.text:
                raise Violation(f"{mark} of {path} is found with the text {hit.text!r}")
    alive = {mark_of(text) for text in state.values()}
    for mark in set(dead) - alive:
        if hits := corpus.search(mark, k=10, mode="lexical"):
            raise Violation(f"{mark} is dead and is found in {[hit.path for hit in hits]}")


def _search_vectors(corpus: Corpus, state: State) -> None:
    hits = corpus.search("anything", k=_LIMIT, mode="dense")
    spans = sorted((hit.path, hit.start, hit.end) for hit in hits)
    with corpus.reading() as store:
        due = sorted(
            store.connection.execute(
                "SELECT CAST(d.path AS TEXT), p.start, p.end FROM passage p "
                "JOIN document d ON d.id = p.document_id"
            ).fetchall()
        )
    if spans != due or any(hit.also for hit in hits):
        raise Violation(f"dense search finds {spans}, and the passages are {due}")
    for hit in hits:
        if hit.text != state[hit.path][hit.start : hit.end]:
            raise Violation(f"dense search finds {hit.text!r} at {hit.path}:{hit.start}")
    if {path for path, start, _ in spans if start == 0} != state.keys():
        raise Violation(f"dense search finds {spans}, and stored is {_outline(state)}")
    single = {d.path.decode() for d in corpus.documents() if d.windows == 1}
    for path, text in state.items():  # a text of one window is its own nearest neighbour
        if path in single:
            best = corpus.search(text, k=1, mode="dense")[0]
            if best.path != path or best.score < 0.99:
                raise Violation(f"{text!r} of {path} is nearest to {best.path}, {best.score:.3f}")


def _outline(state: State) -> dict[str, str]:
    return {path: mark_of(text) for path, text in sorted(state.items())}
