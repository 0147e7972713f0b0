"""Disk faults: system calls of random workloads fail, once or from then on.

EIO, ENOSPC and EDQUOT at calls that can give them, EMFILE at opens (those that only read as well), and
writes that take only a half. The process has to survive, or to end with an error of
ragembed/errors.py; a step that met one is tried once more, with the index opened again. Any other
exception, a signal or a hang is a violation. Afterwards, without the fault, the index is judged
(check.py) against what was acknowledged.

    python tests/soak/faults.py [--trials 2000] [--workloads create,sync] [--log docs/soak.jsonl]
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import tracer
from calls import OPENS, SYNCS, WRITES, Call, describe
from campaign import Clock, Result, Templates
from check import Case, judged
from plan import CLEAN_ERROR

_LIMIT = 90.0  # seconds of a run; a reader waits 30 for a writer that is slow
_NAMING = frozenset({"rename", "renameat", "renameat2", "link", "linkat", "mkdir", "mkdirat"})
_SIZING = frozenset({"ftruncate", "truncate", "fallocate"})
_ANY = _NAMING | _SIZING | WRITES | SYNCS | {"unlink", "unlinkat", "rmdir", "chmod", "fchmod"}


def _takes_space(call: Call) -> bool:
    if call.name in OPENS:
        return bool(call.flags & os.O_CREAT) and not call.existed
    return call.name in _NAMING | _SIZING | WRITES | SYNCS


FAULTS: dict[str, tuple[tracer.Action, Callable[[Call], bool]]] = {
    "EIO": (tracer.Fail(errno.EIO), lambda call: call.number > 0 and call.name in _ANY | OPENS),
    "ENOSPC": (tracer.Fail(errno.ENOSPC), _takes_space),
    "EDQUOT": (tracer.Fail(errno.EDQUOT), _takes_space),
    "EMFILE": (tracer.Fail(errno.EMFILE), lambda call: call.name in OPENS),
    "short": (tracer.Shorten(), lambda call: call.name in WRITES and call.length > 1),
}


@dataclass(slots=True)
class Tally:
    """What the campaign did."""

    trials: int = 0
    injected: int = 0  # calls that failed
    survived: int = 0
    clean_errors: int = 0
    acknowledged: int = 0
    acknowledged_trials: int = 0
    in_flight_done: int = 0
    no_lexical: int = 0  # indexes left without lexical files, which `verify` reported
    missed: int = 0  # runs that had ended before the fault came
    faults: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` befalls the `first` call that can have it, counted from 1; `sticky`: and all later."""

    kind: str
    first: int
    sticky: bool


def run(
    templates: Templates, name: str, fault: Fault | None, counts: Counter[str]
) -> tuple[tracer.Outcome, Case]:
    """Run a workload with a fault; `counts` takes how many calls each kind could have befallen."""
    place, plan = templates.lay_out(name)
    reading, writing = os.pipe()

    def act(call: Call) -> tracer.Action:
        for kind, (action, fits) in FAULTS.items():
            if not call.path.endswith("-shm") and fits(call):
                counts[kind] += 1
                if fault is not None and kind == fault.kind:
                    n = counts[kind]
                    if n == fault.first or (fault.sticky and n > fault.first):
                        return action
        return None

    outcome = tracer.trace(
        lambda: plan.run(place, writing),
        place.store,
        act,
        report=(reading, writing),
        errors=place.home / "errors",
        limit=_LIMIT,
    )
    due = plan.after(outcome.reported)
    # A disk that stays full may leave no room for tantivy's files: reported, and answers are right.
    spoilt = due.spoilt | ({"lexical"} if fault is not None and fault.sticky else set())
    return outcome, Case.of(place.index, due, spoilt)


def trial(templates: Templates, name: str, fault: Fault, tally: Tally, plant: bool) -> str:
    """One run with a fault, and the judgement; what is wrong, or nothing."""
    outcome, case = run(templates, name, fault, Counter())
    home = case.index.parents[1]
    if not outcome.acted:
        tally.missed += 1
        return ""
    first = outcome.acted[0][0]
    how = "from then on" if fault.sticky else "once"
    what = f"{name}, {fault.kind} {how} at {fault.first}: {describe(first, str(home))}"
    said = (home / "errors").read_text(errors="replace")[-1500:]
    lines = [line.decode() for line in outcome.reported.split(b"\n") if line]
    failures = [line.split()[1] for line in lines if line.startswith("!")]
    acknowledged = len(lines) - len(failures)
    if outcome.timed_out:
        return f"{what}: the process hangs: {failures} {said}"
    if outcome.code not in (0, CLEAN_ERROR):
        return f"{what}: the process ended with {outcome.code}: {failures} {said}"
    tally.trials += 1
    tally.injected += len(outcome.acted)
    tally.survived += outcome.code == 0
    tally.clean_errors += outcome.code == CLEAN_ERROR
    tally.acknowledged += acknowledged
    tally.acknowledged_trials += bool(acknowledged)
    tally.faults[f"{fault.kind} {how}"] += 1
    tally.calls[first.name] += 1
    tally.names[name] += 1
    tally.errors.update(failures)
    if plant and acknowledged:
        campaign.forget_a_document(case.index)
    (verdict,) = judged([case], home / "judge")
    tally.in_flight_done += verdict.state > 0
    tally.no_lexical += bool(verdict.reported)
    return f"{what}; {failures}: {verdict.violation}" if verdict.violation else ""


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plant", action="store_true", help="lose a document on purpose: this has to be noticed"
    )
    parser.add_argument("--only", choices=sorted(FAULTS), help="one kind of fault")
    parser.add_argument("--at", type=int, help="with --only: this call, and no other")
    parser.add_argument("--sticky", action="store_true", help="with --at: and all later calls")


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    if reason := tracer.unavailable():
        print(reason, file=sys.stderr)
        return 77
    chance = random.Random(chosen.seed)
    tally, result = Tally(), Result()
    with campaign.home("faults") as folder:
        templates = Templates(folder, chosen.workloads)
        counts: dict[str, Counter[str]] = {name: Counter() for name in chosen.workloads}
        for name in chosen.workloads:
            outcome, case = run(templates, name, None, counts[name])
            if outcome.code or len(case.states) != 1:
                raise RuntimeError(f"{name} ends with {outcome.code} where nothing is wrong")
        clock = Clock(chosen.trials or (None if chosen.seconds else 2000), chosen.seconds)
        done = 0
        while not clock.over(done):
            name = chance.choice(chosen.workloads)
            kind = chosen.only or chance.choice(sorted(FAULTS))
            number = chance.randint(1, counts[name][kind])
            fault = Fault(kind, number, chance.random() < 0.4)
            if chosen.at:
                fault = Fault(kind, chosen.at, chosen.sticky)
            done += 1
            if problem := trial(templates, name, fault, tally, chosen.plant):
                result.found(problem)
        if not (tally.injected and tally.acknowledged_trials and tally.survived):
            result.found("no fault hit a run that acknowledged something: vacuous")
        result.counts = {
            **({"planted": True} if chosen.plant else {}),
            "trials": tally.trials,
            "injected": tally.injected,
            "missed": tally.missed,
            "faults": dict(sorted(tally.faults.items())),
            "at": dict(tally.calls.most_common()),
            "of": dict(sorted(tally.names.items())),
            "survived": tally.survived,
            "clean_errors": tally.clean_errors,
            "errors": dict(tally.errors),
            "after_acknowledgement": tally.acknowledged_trials,
            "acknowledged": tally.acknowledged,
            "in_flight_done": tally.in_flight_done,
            "no_lexical": tally.no_lexical,
        }
    return campaign.finish("faults", chosen, result, clock.elapsed())


if __name__ == "__main__":
    sys.exit(main())
