"""SIGKILL at the entry of every system call that writes, of every workload.

A trial runs a workload from its template and kills it at its n-th such call below the index's
directory; then the index is judged (check.py) against what was acknowledged. n goes from 1 to the
first number that the workload does not reach. Background threads make the order of calls vary a
little from run to run, so the log counts the calls that processes died at, by name.

    python tests/soak/kill_calls.py [--workloads create,sync] [--share 1/4] [--log docs/soak.jsonl]

`--share i/m` does every m-th call, beginning with the i-th; `--from` and `--to` bound n; `--trials`
spreads so many evenly.
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import tracer
from calls import Call, describe
from campaign import Clock, Result, Templates
from check import Case, judged


@dataclass(slots=True)
class Tally:
    """What the campaign did."""

    kills: int = 0
    acknowledged: int = 0
    killed_after_acknowledgement: int = 0
    in_flight_done: int = 0  # the step in flight was stored although it was not acknowledged
    calls: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    places: set[str] = field(default_factory=set)


def run(templates: Templates, name: str, number: int | None) -> tuple[tracer.Outcome, Case]:
    """Run a workload, killed at its call `number` (None: not at all); its end, and what to judge."""
    place, plan = templates.lay_out(name)
    reading, writing = os.pipe()

    def act(call: Call) -> tracer.Action:
        return tracer.Kill() if call.number == number else None

    outcome = tracer.trace(
        lambda: plan.run(place, writing),
        place.store,
        act,
        report=(reading, writing),
        errors=place.home / "errors",
    )
    return outcome, Case.of(place.index, plan.after(outcome.reported))


def length(templates: Templates, name: str) -> int:
    """How many calls a workload makes when nothing stops it; it has to end well and be right."""
    outcome, case = run(templates, name, None)
    if outcome.code or len(case.states) != 1:
        raise RuntimeError(f"{name} ends with {outcome.code} where nothing is wrong: {case}")
    (verdict,) = judged([case])
    if verdict.violation:
        raise RuntimeError(f"{name} is wrong where nothing is wrong: {verdict.violation}")
    return outcome.count


def trial(templates: Templates, name: str, number: int, tally: Tally, plant: bool) -> str:
    """Kill one run and judge it; what is wrong, or nothing. Past the last call nothing is counted."""
    outcome, case = run(templates, name, number)
    if not outcome.acted:
        return "" if outcome.code == 0 else f"{name} ended with {outcome.code} and was not killed"
    what = f"{name}, call {number}, {describe(outcome.acted[0][0], str(case.index.parent))}"
    if outcome.code != -9:
        return f"{what}: the process ended with {outcome.code}, and not by SIGKILL"
    acknowledged = outcome.reported.count(b"\n")
    tally.kills += 1
    tally.acknowledged += acknowledged
    tally.killed_after_acknowledgement += bool(acknowledged)
    tally.calls[outcome.acted[0][0].name] += 1
    tally.names[name] += 1
    tally.places.add(describe(outcome.acted[0][0], str(case.index.parent)))
    if plant and acknowledged:
        campaign.forget_a_document(case.index)
    (verdict,) = judged([case], Path(case.index.parents[1] / "judge"))
    tally.in_flight_done += verdict.state > 0
    return f"{what}: {verdict.violation}" if verdict.violation else ""


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--share", default="1/1", metavar="I/M")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="N")
    parser.add_argument("--to", type=int, default=None, dest="last", metavar="N")
    parser.add_argument(
        "--plant", action="store_true", help="lose a document on purpose: this has to be noticed"
    )


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    if reason := tracer.unavailable():
        print(reason, file=sys.stderr)
        return 77
    part, parts = (int(number) for number in chosen.share.split("/"))
    clock = Clock(None, chosen.seconds)
    tally, result = Tally(), Result()
    with campaign.home("kill-calls") as folder:
        templates = Templates(folder, chosen.workloads)
        totals = {name: length(templates, name) for name in chosen.workloads}
        numbers = [
            (name, number)
            for name in chosen.workloads
            # a little beyond, because other runs may make a few calls more
            for number in range(chosen.first + part - 1, totals[name] + 4, parts)
            if chosen.last is None or number <= chosen.last
        ]
        step = math.ceil(len(numbers) / chosen.trials) if chosen.trials else 1
        for name, number in numbers[chosen.seed % step :: step]:
            if clock.over(tally.kills):
                break
            if problem := trial(templates, name, number, tally, chosen.plant):
                result.found(problem)
        if not tally.killed_after_acknowledgement or not tally.kills:
            result.found("nothing was killed after an acknowledgement: vacuous")
        result.counts = {
            "share": chosen.share,
            "first": chosen.first,
            "last": chosen.last,
            **({"planted": True} if chosen.plant else {}),
            "calls": totals,
            "trials": tally.kills,
            "kills": tally.kills,
            "of": dict(sorted(tally.names.items())),
            "at": dict(tally.calls.most_common()),
            "places": len(tally.places),
            "killed_after_acknowledgement": tally.killed_after_acknowledgement,
            "acknowledged": tally.acknowledged,
            "in_flight_done": tally.in_flight_done,
        }
    return campaign.finish("kill_calls", chosen, result, clock.elapsed())


if __name__ == "__main__":
    sys.exit(main())
