"""Power cuts: directory states that the system calls of each workload may leave on the disk.

Each workload is run once and its calls are recorded, with what it acknowledged in between. Then
power is cut after random calls: disk.py says what may be on the disk. Each state that differs from
all before is laid out in memory and judged (check.py). What was acknowledged before the cut has to be
there. `verify` may find tantivy's files damaged, and no more: the database and every
FAISS file that it names have been fsynced.

    python tests/soak/power_loss.py [--trials 10000] [--workloads create,sync] [--log docs/soak.jsonl]

`--journal` is a disk that keeps changes of names in order (see disk.py). `--forget database` (names,
vectors) leaves fsyncs out of the log, which has to be noticed. `--lenient-parent` takes the
name of a new index for durable. Not in the model: a disk that lies about fsync.
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tracer
from calls import SYNCS, Call, describe
from campaign import Clock, Result, Templates
from check import Case, judged
from disk import Disk, digest, replay, write_out

_AT_ONCE = 40  # states that one judge looks at
_TORN = frozenset({"lexical"})
FORGET: dict[str, Callable[[Call], bool]] = {
    "nothing": lambda call: False,
    "database": lambda call: call.name in SYNCS and ".db" in call.path,
    "vectors": lambda call: call.name in SYNCS and ".faiss" in call.path,
    "names": lambda call: call.name in SYNCS and call.path.endswith("/index"),
}


@dataclass(slots=True)
class Tally:
    """What the campaign did."""

    states: int = 0
    same: int = 0  # states that had been judged before
    after_acknowledgement: int = 0
    in_flight_done: int = 0
    torn: int = 0  # states whose lexical files were damaged, and reported
    names: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a workload did."""

    name: str
    calls: list[Call]
    place: Path


def recorded(templates: Templates, name: str) -> Recording:
    """Run a workload and write down what it does.

    Raises:
        RuntimeError: it does not end well.
    """
    place, plan = templates.lay_out(name)
    reading, writing = os.pipe()
    outcome = tracer.trace(
        lambda: plan.run(place, writing),
        place.store,
        record=True,
        report=(reading, writing),
        errors=place.home / "errors",
    )
    if outcome.code or sum(call.is_report for call in outcome.calls) < len(plan.steps) - plan.begun:
        raise RuntimeError(f"{name} ends with {outcome.code}; {outcome.reported!r}")
    return Recording(name, outcome.calls, place.store)


class Campaign:
    """States on their way to the judge."""

    def __init__(
        self, templates: Templates, folder: Path, chosen: argparse.Namespace, seed: int
    ) -> None:
        self.templates = templates
        self.folder = folder
        self.chosen = chosen
        self.chance = random.Random(seed)
        self.tally = Tally()
        self.result = Result()
        self._seen: set[tuple[str, int, bytes]] = set()
        self._cases: list[Case] = []
        self._about: list[str] = []
        self._serial = 0

    def pass_over(self, recording: Recording, cuts: int) -> None:
        """Cut the power `cuts` times in one run of a log, at random places."""
        forget = FORGET[self.chosen.forget]
        template = self.templates.folder(recording.name) / "store"
        disk = Disk(recording.place, template, journal=self.chosen.journal)
        places = Counter(self.chance.choices(range(len(recording.calls) + 1), k=cuts))
        for number, reported in replay(disk, recording.calls, forget):
            if self.chosen.lenient_parent:  # the name of a new index in the directory around it
                disk.top.sync()
            for _ in range(places[number]):
                self._put(recording, disk, number, reported)
        self.flush()

    def _put(self, recording: Recording, disk: Disk, number: int, reported: bytes) -> None:
        contents = disk.after_cut(self.chance)
        key = (recording.name, digest(contents), reported)
        if key in self._seen:
            self.tally.same += 1
            return
        self._seen.add(key)
        due = self.templates.plans[recording.name].after(reported)
        self._serial += 1
        place = self.folder / "states" / str(self._serial)
        write_out(contents, place)
        self._cases.append(Case.of(place / "index", due, _TORN))
        call = recording.calls[number - 1] if number else None
        last = describe(call, str(recording.place)) if call else "nothing"
        self._about.append(f"{recording.name}, cut after call {number} ({last}), {place.name}")
        self.tally.after_acknowledgement += bool(due.acknowledged)
        self.tally.names[recording.name] += 1
        if len(self._cases) == _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Judge what waits."""
        verdicts = judged(self._cases, self.folder / "judge")
        for case, about, verdict in zip(self._cases, self._about, verdicts, strict=True):
            self.tally.states += 1
            self.tally.in_flight_done += verdict.state > 0
            self.tally.torn += bool(verdict.reported)
            if verdict.violation:
                self.result.found(f"{about}: {verdict.violation}")
            shutil.rmtree(case.index.parent)
        self._cases, self._about = [], []


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--forget", choices=sorted(FORGET), default="nothing")
    parser.add_argument("--journal", action="store_true")
    parser.add_argument("--lenient-parent", action="store_true")


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    if reason := tracer.unavailable():
        print(reason, file=sys.stderr)
        return 77
    clock = Clock(chosen.trials or (None if chosen.seconds else 10_000), chosen.seconds)
    with campaign.home("power-loss") as folder:
        templates = Templates(folder, chosen.workloads)
        work = Campaign(templates, folder, chosen, chosen.seed)
        recordings = [recorded(templates, name) for name in chosen.workloads]
        share = max(1, min(40, (chosen.trials or 1000) // len(recordings)))
        fruitless = 0
        while not clock.over(work.tally.states) and fruitless < 5:
            before = work.tally.states
            for recording in recordings:
                work.pass_over(recording, share)
            fruitless = fruitless + 1 if work.tally.states == before else 0
        tally = work.tally
        if not tally.after_acknowledgement or tally.states < len(recordings):
            work.result.found("no state came after an acknowledgement: vacuous")
        work.result.counts = {
            "model": "journal" if chosen.journal else "strict",
            "parent": "durable" if chosen.lenient_parent else "strict",
            "forgotten": chosen.forget,
            "calls": {r.name: len(r.calls) for r in recordings},
            "trials": tally.states,
            "states": tally.states,
            "of": dict(tally.names),
            "same": tally.same,
            "after_acknowledgement": tally.after_acknowledgement,
            "in_flight_done": tally.in_flight_done,
            "torn_lexical": tally.torn,
        }
    return campaign.finish("power_loss", chosen, work.result, clock.elapsed())


if __name__ == "__main__":
    sys.exit(main())
