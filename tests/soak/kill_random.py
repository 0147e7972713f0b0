"""SIGKILL at random moments, on the same index trial after trial.

This process has imported everything and forks a worker for each trial, which carries out a
random plan: texts and files come, change, move and go, writers open and close. It is killed at a
random moment; a fifth of the workers are killed while they open and recover, which is real recovery,
since the index is judged on a copy and left as the kill before left it. What is found stored is where
the next plan begins. Now and then an index is put away and a new one begun.

    python tests/soak/kill_random.py [--trials 2000] [--log docs/soak.jsonl]
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import os
import random
import select
import shutil
import signal
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from basics import Place, embedder
from campaign import Clock, Result
from check import Case, judged
from plan import Plan, State
from tracer import thread_count

_STEPS = 60  # more than a worker lives to do
_LIFE = 0.5  # seconds, at most
_OPENING = 0.03  # seconds in which a worker opens, recovers and begins
_TRIALS_OF_AN_INDEX = 50
_IDS = [f"t{number}" for number in range(8)]
_FILES = 8


@dataclass(slots=True)
class Tally:
    """What the campaign did."""

    trials: int = 0
    kills: int = 0
    opening: int = 0
    acknowledged: int = 0
    killed_after_acknowledgement: int = 0
    killed_in_a_step: int = 0  # after something was acknowledged, before all was
    in_flight_done: int = 0
    indexes: int = 0


class Run:
    """An index that lives through many kills."""

    def __init__(self, place: Place, chance: random.Random, number: int) -> None:
        self.place = place
        self.chance = chance
        self.state: State = {}
        self.born = False  # whether it was ever acknowledged that there is an index
        self.buried: list[str] = []  # texts that were stored once
        self.serial = number * 1_000_000
        self.spoilt: frozenset[str] = frozenset()  # what a plan has removed, see Step
        place.clear()

    def plan(self) -> Plan:
        """Random steps from what is stored and what is on disk."""
        files = {file.name: file.read_text() for file in sorted(self.place.files.iterdir())}
        # A file that was being written when its worker was killed has no text of ours.
        for name in [name for name, text in files.items() if not text]:
            (self.place.files / name).unlink()
            del files[name]
        plan = Plan(self.state, files)
        plan.serial, plan.prefix, plan.spoilt = self.serial, "word", self.spoilt
        plan.step("open", lambda bench: bench.corpus)
        for _ in range(_STEPS):
            self._step(plan)
        self.serial = plan.serial
        return plan

    def _step(self, plan: Plan) -> None:
        chance = self.chance
        what = chance.choice(
            ("add", "add", "add", "delete", "remove", "sync", "sync", "open", "search")
        )
        words = chance.choice((1, 1, 5, 40))
        ids = chance.sample(_IDS, chance.randint(1, 3))
        if what == "add":
            plan.add(*ids, words=words)
        elif what == "delete":
            plan.delete(*ids)
        elif what == "remove":
            plan.remove(*ids)
        elif what == "search":
            plan.search()
        elif what == "open":
            plan.lose_lexical() if chance.random() < 0.2 else plan.reopen()
        else:
            self._sync(plan, words)

    def _sync(self, plan: Plan, words: int) -> None:
        chance = self.chance
        known = sorted(plan.files)
        chance.shuffle(known)
        moved, gone = known[:1], known[1 : 1 + (len(known) > _FILES)]
        fresh = [f"{plan.serial + n + 1}.txt" for n in range(3)]
        write = [*known[-1:], fresh[0]] if len(known) > 2 else fresh[:2]
        rename = {name: fresh[2] for name in moved} if chance.random() < 0.5 else {}
        remove = [name for name in gone if name not in rename and name not in write]
        plan.sync(
            write=tuple(name for name in write if name not in rename),
            rename=rename,
            remove=tuple(remove),
            words=words,
        )


def killed(plan: Plan, place: Place, life: float, errors: Path) -> tuple[int, bytes]:
    """Fork a worker and kill it after `life` seconds; its exit code and what it acknowledged."""
    reading, writing = os.pipe()
    if thread_count() > 1:
        raise RuntimeError("a process with threads is not safe to fork")
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(plan, place, writing, errors)
    os.close(writing)
    deadline = time.monotonic() + life
    reported = b""
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            chunk = os.read(reading, 1 << 16)
            if not chunk:  # it ended by itself
                break
            reported += chunk
    os.kill(child, signal.SIGKILL)
    while chunk := os.read(reading, 1 << 16):
        reported += chunk
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), reported


def _work(plan: Plan, place: Place, pipe: int, errors: Path) -> None:
    code = 70
    try:
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), 2)
        plan.run(place, pipe)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def trial(run: Run, tally: Tally, plant: bool) -> str:
    """One kill and one judgement; what is wrong, or nothing."""
    opening = run.chance.random() < 0.2
    life = run.chance.uniform(0.0, _OPENING if opening else _LIFE)
    plan = run.plan()
    errors = run.place.home / "errors"
    code, reported = killed(plan, run.place, life, errors)
    if code != -signal.SIGKILL:
        said = errors.read_text(errors="replace")[-1500:]
        return f"the worker ended with {code} and was not killed: {reported[-500:]!r} {said}"
    tally.trials += 1
    tally.kills += 1
    tally.opening += opening
    due = plan.after(reported)
    if b"!" in reported:
        return f"a step failed where nothing was wrong: {reported[-500:]!r}"
    tally.acknowledged += due.acknowledged
    tally.killed_after_acknowledgement += bool(due.acknowledged)
    tally.killed_in_a_step += 0 < due.acknowledged < len(plan.steps)
    run.born = run.born or bool(due.acknowledged)
    copy = run.place.home / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run.place.store, copy)
    if plant and run.born:
        campaign.forget_a_document(copy / "index")
    case = replace(
        Case.of(copy / "index", due), dead=due.dead + run.buried[-20:], create=not run.born
    )
    (verdict,) = judged([case], run.place.home / "judge")
    if verdict.violation:
        return f"trial {tally.trials}, killed after {life:.4f} s, {reported[-30:]!r}: {verdict.violation}"
    tally.in_flight_done += verdict.state > 0
    found = due.states[verdict.state]
    run.spoilt = due.spoilt
    run.buried += [text.split()[0] for text in run.state.values() if text not in found.values()]
    run.state = found
    return ""


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plant", action="store_true", help="lose a document on purpose: this has to be noticed"
    )


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    chosen.workloads = ["random"]
    embedder()
    clock = Clock(chosen.trials or (None if chosen.seconds else 2000), chosen.seconds)
    chance = random.Random(chosen.seed)
    tally, result = Tally(), Result()
    with campaign.home("kill-random") as folder:
        run, left = None, 0
        while not clock.over(tally.trials) and len(result.violations) < 20:
            if run is None or left == 0:
                tally.indexes += 1
                run = Run(Place(folder / "place"), chance, tally.indexes)
                left = chance.randint(1, 2 * _TRIALS_OF_AN_INDEX)
            left -= 1
            if problem := trial(run, tally, chosen.plant):
                result.found(problem)
                run.place.home.rename(folder / f"violation-{len(result.violations)}")
                run = None  # what is stored now is in doubt
        if not (tally.killed_in_a_step and tally.opening):
            result.found("no worker was killed after an acknowledgement: vacuous")
        result.counts = {
            **({"planted": True} if chosen.plant else {}),
            "trials": tally.trials,
            "kills": tally.kills,
            "opening": tally.opening,
            "killed_after_acknowledgement": tally.killed_after_acknowledgement,
            "acknowledged": tally.acknowledged,
            "in_flight_done": tally.in_flight_done,
            "indexes": tally.indexes,
        }
    return campaign.finish("kill_random", chosen, result, clock.elapsed())


if __name__ == "__main__":
    sys.exit(main())
