"""Readers beside a writer that lives, and is killed: each answer is that of one commit.

Two reader processes of two threads each share an index with a writer. The writer gives all its texts
the number of a new round in one commit, adds and deletes others, renames a file, compacts, changes the
model; now and then it is ended by SIGKILL and begun again. An answer has to hold every text, all of
one round, which is not older than what was acknowledged before the question, nor than what the same
thread has seen; the texts that come and go are there all or none, the file exactly once.

Memory (RSS) and open files of the readers are looked at once a second. What an index of constant size
needs does not depend on how many commits went by. So after a warm-up memory may not rise from fifth to
fifth: a view or a connection that leaks with each commit or change of the model does that. A single
step is no leak: a reader that mends what a kill has left takes tantivy's buffers once, and allocators
keep them; it may not pass `_STEP`. Open files may not grow, but for a few that are in use just then.

    python tests/soak/readers.py --seconds 600 [--log docs/soak.jsonl]
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import json
import os
import random
import select
import signal
import statistics
import struct
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from basics import FIRST, SECOND, embedder, model_of, opened
from campaign import Result

from ragembed import Corpus, Document, reembed
from ragembed.errors import IndexLocked, ModelMismatch

READERS, THREADS = 2, 2
_TEXTS = 12
_EXTRAS = 3
_MODES = ("lexical", "dense", "hybrid")
_BEGINS = 60.0  # seconds within which a writer has to do something
_WARM = 0.3  # share of the time that is warm-up
_SLACK, _STEP = (
    8.0,
    96.0,
)  # MB that memory may rise in all; in a single step (tantivy's buffers are 64)
_FILES_SLACK = 4
_LONG = (
    120.0  # seconds; a shorter run is over before the warm-up is, and its growth is only reported
)


@dataclass(frozen=True, slots=True)
class Place:
    """What the processes share."""

    home: Path

    @property
    def index(self) -> Path:
        return self.home / "index"

    @property
    def files(self) -> Path:
        return self.home / "files"

    def acknowledged(self) -> int:
        """The newest round that was acknowledged."""
        return int(struct.unpack("<q", (self.home / "round").read_bytes())[0])

    def acknowledge(self, number: int) -> None:
        draft = self.home / "round.new"
        draft.write_bytes(struct.pack("<q", number))
        draft.replace(self.home / "round")

    def over(self) -> bool:
        return (self.home / "stop").exists()


# -- the writer --------------------------------------------------------------------------------


class Changes:
    """The writer's side."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place = place
        self.chance = random.Random(seed)
        reembed._BATCH = 4
        self.corpus = opened(place.index, create=True)
        self.round = max((_round(d) for d in self._texts()), default=0)
        self.renames = time.time_ns()

    def _texts(self) -> list[str]:
        with self.corpus.reading() as store:
            return [store.source_text(d.id) for d in store.documents() if d.root_id is None]

    def update(self) -> None:
        """Every text in a new round, in one commit; the extras come with it."""
        self.round += 1
        ids = [f"text{n}" for n in range(_TEXTS)] + [f"extra{n}" for n in range(_EXTRAS)]
        self.corpus.add(
            [Document(id=id, text=f"round{self.round} burrow {id} of this round.") for id in ids]
        )
        self.place.acknowledge(self.round)

    def delete(self) -> None:
        self.corpus.delete([f"extra{n}" for n in range(_EXTRAS)])

    def rename(self) -> None:
        self.renames += 1
        (file,) = self.place.files.iterdir()
        file.rename(self.place.files / f"{self.renames}.txt")
        self.corpus.sync(self.place.files)

    def compact(self) -> None:
        self.corpus.compact()

    def other_model(self) -> None:
        now = model_of(self.corpus)
        self.corpus.reembed(encoder=embedder(SECOND if now == FIRST else FIRST))

    def reopen(self) -> None:
        self.corpus.close()
        self.corpus = opened(self.place.index, create=False)

    def work(self) -> None:
        steps = (self.update, self.delete, self.rename, self.compact, self.other_model, self.reopen)
        while not self.place.over():
            (step,) = self.chance.choices(steps, (50, 15, 10, 7, 8, 10))
            with suppress(IndexLocked):  # a reader is mending what a kill has left
                step()
                print(step.__name__, flush=True)
        self.corpus.close()


def _round(text: str) -> int:
    return int(text.split()[0].removeprefix("round"))


# -- a reader ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """What one thread has seen."""

    answers: int = 0
    rounds: set[int] = field(default_factory=set)
    newest: int = 0


class Questions:
    """The threads of one reader process share one Corpus; it is opened again for another model."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.corpus = opened(place.index, create=False)
        self.before: Corpus | None = None
        self.exchanging = threading.Lock()
        self.exchanged = 0
        self.failures: list[str] = []
        self.seen = [Seen() for _ in range(THREADS)]

    def exchange(self, old: Corpus) -> None:
        """The index has another model; the Corpus before may still be in use and goes one later."""
        with self.exchanging:
            if self.corpus is old:
                if self.before is not None:
                    self.before.close()
                self.before, self.corpus = old, opened(self.place.index, create=False)
                self.exchanged += 1

    def ask(self, number: int) -> None:
        seen = self.seen[number]
        try:
            while not self.place.over():
                for mode in _MODES:
                    due = max(self.place.acknowledged(), seen.newest)
                    corpus = self.corpus
                    try:
                        hits = corpus.search("burrow", k=100, mode=mode).hits  # type: ignore[arg-type]
                    except ModelMismatch:
                        self.exchange(corpus)
                        continue
                    if problem := judged(hits, due, seen):
                        self.failures.append(f"{mode}: {problem}")
                        return
        except BaseException:  # handed to whoever waits
            self.failures.append(traceback.format_exc()[-2500:])

    def work(self) -> None:
        threads = [threading.Thread(target=self.ask, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(
            json.dumps(
                {
                    "answers": sum(seen.answers for seen in self.seen),
                    "rounds": len(set().union(*(seen.rounds for seen in self.seen))),
                    "exchanged": self.exchanged,
                    "failures": self.failures,
                }
            )
        )


def judged(hits: Any, due: int, seen: Seen) -> str:
    """What is wrong with an answer, or nothing."""
    texts = {hit.path: hit.text for hit in hits}
    paths = sorted(texts)
    files = [path for path in paths if path.endswith(".txt")]
    extras = [path for path in paths if path.startswith("extra")]
    rounds = {_round(text) for path, text in texts.items() if path not in files}
    if len(texts) != len(hits) or any(hit.also for hit in hits):
        return f"a text is found twice: {[hit.path for hit in hits]}"
    if len(files) != 1 or len(extras) not in (0, _EXTRAS):
        return f"half of a commit: {paths}"
    if len(paths) != _TEXTS + len(extras) + 1 or len(rounds) != 1:
        return f"not one commit: rounds {rounds}, {paths}"
    (number,) = rounds
    if number < due:
        return f"round {number}, and {due} was acknowledged or seen before"
    seen.newest = number
    seen.rounds.add(number)
    seen.answers += 1
    return ""


# -- the campaign ------------------------------------------------------------------------------


def _role(role: str, place: Place, seed: int, errors: Path) -> subprocess.Popen[str]:
    with errors.open("a") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--role", role, "--home", str(place.home), "--seed", str(seed)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip


def growth(samples: list[tuple[float, float, int]]) -> tuple[dict[str, object], str]:
    """The figures of one reader after the warm-up, and what has grown; (seconds, MB, files) each."""
    kept = samples[int(len(samples) * _WARM) :]
    fifth = max(1, len(kept) // 5)
    parts = [kept[n * fifth : (n + 1) * fifth] or kept[-1:] for n in range(5)]
    slope = 0.0
    if len(kept) > 2:
        slope = statistics.linear_regression([t for t, _, _ in kept], [m for _, m, _ in kept]).slope
    memory = [statistics.median(m for _, m, _ in part) for part in parts]
    before, after = memory[0], memory[-1]
    rises = sum(later > earlier + 1.0 for earlier, later in zip(memory, memory[1:], strict=False))
    files_before, files_after = (max(f for _, _, f in part) for part in (parts[0], parts[-1]))
    figures = {
        "mb_before": round(before, 1), "mb_after": round(after, 1),
        "mb_per_hour": round(slope * 3600, 1),
        "mb": [round(m) for _, m, _ in samples[:: max(1, len(samples) // 20)]],
        "files_before": files_before, "files_after": files_after,
    }  # fmt: skip
    if after > before + (_SLACK if rises >= 3 else _STEP):
        return figures, f"memory grows: {figures}"
    if files_after > files_before + _FILES_SLACK:
        return figures, f"open files grow: {figures}"
    return figures, ""


class Supervisor:
    """Runs the processes, kills the writer now and then, and looks at the readers meanwhile."""

    def __init__(self, place: Place, seconds: float, seed: int, result: Result) -> None:
        self.place = place
        self.seconds = seconds
        self.seed = seed
        self.result = result
        self.chance = random.Random(seed)
        self.errors = place.home / "errors"
        self.kills = self.writers = 0
        self.steps: Counter[str] = Counter()
        place.files.mkdir()
        (place.files / "1.txt").write_text("A filed burrow.")
        place.acknowledge(0)
        with opened(place.index, create=True) as corpus:
            corpus.sync(place.files)
        Changes(place, seed).update()
        self.readers = [
            _role("reader", place, seed + number, self.errors) for number in range(READERS)
        ]
        self.samples: list[list[tuple[float, float, int]]] = [[] for _ in self.readers]
        self.started = time.monotonic()

    def run(self) -> None:
        """One writer after the other until the time is up, then the reckoning."""
        while (left := self.seconds - self._elapsed()) > 0:
            self._one_writer(left)
            if any(reader.poll() is not None for reader in self.readers):
                break
        (self.place.home / "stop").touch()
        told = [said for reader in self.readers if (said := self._last_words(reader))]
        self._reckon(told)

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _one_writer(self, left: float) -> None:
        """A writer that lives for a while, and is killed."""
        longest = max(3.0, min(20.0, self.seconds / 8))
        writer = _role("writer", self.place, self.seed + 100 + self.writers, self.errors)
        self.writers += 1
        # It is to do something before it goes; importing alone takes seconds on a busy machine.
        if writer.stdout and select.select([writer.stdout], [], [], _BEGINS)[0]:
            self.steps.update([writer.stdout.readline().strip()])
        end = time.monotonic() + min(left, self.chance.uniform(0.5, longest))
        while time.monotonic() < end and writer.poll() is None:
            time.sleep(min(1.0, self.seconds / 60))
            for reader, found in zip(self.readers, self.samples, strict=True):
                with suppress(psutil.Error):  # it has ended, and says why later
                    process = psutil.Process(reader.pid)
                    memory = process.memory_info().rss / 1e6
                    found.append((self._elapsed(), memory, process.num_fds()))
        if writer.poll() is not None:
            self.result.found(f"a writer ended by itself: {self.errors.read_text()[-2000:]}")
        writer.send_signal(signal.SIGKILL)
        self.steps.update(writer.communicate()[0].split())
        self.kills += writer.returncode == -signal.SIGKILL

    def _last_words(self, reader: subprocess.Popen[str]) -> dict[str, Any]:
        said, _ = reader.communicate(timeout=120)
        if reader.returncode:
            said = self.errors.read_text()[-2000:]
            self.result.found(f"a reader ended with {reader.returncode}: {said}")
            return {}
        found: dict[str, Any] = json.loads(said)
        return found

    def _reckon(self, told: Sequence[dict[str, Any]]) -> None:
        for failure in (failure for reader in told for failure in reader["failures"]):
            self.result.found(failure)
        figures = [growth(found) for found in self.samples]
        for _, problem in figures:
            if problem and self.seconds >= _LONG:
                self.result.found(problem)
        with opened(self.place.index, create=False) as corpus:
            corpus.search("burrow", mode="lexical")  # mends what the last kill has left
            if problems := corpus.verify().problems:
                self.result.found(f"verify: {problems[:5]}")
        answers = sum(reader["answers"] for reader in told)
        if not answers or not self.kills or self.place.acknowledged() < 3:
            self.result.found("no answers, no kills or no rounds: vacuous")
        self.result.counts = {
            "asked_for": self.seconds,
            "trials": answers,
            "answers": answers,
            "rounds": self.place.acknowledged(),
            "rounds_seen": [reader["rounds"] for reader in told],
            "models_changed": [reader["exchanged"] for reader in told],
            "kills": self.kills,
            "steps": dict(self.steps.most_common()),
            "readers": [numbers for numbers, _ in figures],
        }


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", choices=("writer", "reader"), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    if chosen.role == "writer":
        Changes(Place(chosen.home), chosen.seed).work()
        return 0
    if chosen.role == "reader":
        Questions(Place(chosen.home)).work()
        return 0
    chosen.workloads = ["readers"]
    result = Result()
    started = time.monotonic()
    with campaign.home("readers") as folder:
        Supervisor(Place(folder), chosen.seconds or 600.0, chosen.seed, result).run()
    return campaign.finish("readers", chosen, result, time.monotonic() - started)


if __name__ == "__main__":
    os.environ.setdefault("RUST_BACKTRACE", "0")
    sys.exit(main())
