"""The long form of `tests/index/test_state_machine.py`: as many steps as asked for, in several runs.

Steps are done in portions, and each leaves a line in the log. `--steps-total` counts the steps of all
lines that the log has, and goes on until they add up; so a run may be ended and begun again.

    python tests/soak/state_machine.py --steps-total 100000 --log docs/soak.jsonl
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import importlib.util
import json
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from campaign import Result
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

TESTS = Path(__file__).parents[1]
_PORTION = 2_000  # steps of one line in the log
_NAME = "state_machine"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Tally:
    """What was done: steps, and machines that did them."""

    def __init__(self) -> None:
        self.steps = 0
        self.machines = 0


def counted(oracle: type[Any], tally: Tally) -> type[Any]:
    """The same machine; it counts."""

    class Counted(oracle):  # type: ignore[misc, valid-type]
        @invariant()
        def counts(self) -> None:
            tally.steps += 1

        def teardown(self) -> None:
            tally.steps -= 1  # the invariants are looked at before the first step as well
            tally.machines += 1
            super().teardown()

    return Counted


def logged(log: Path | None) -> int:
    """Steps of all lines of a log."""
    if log is None or not log.exists():
        return 0
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return sum(line.get("done", 0) for line in lines if line["campaign"] == _NAME)


def portion(
    machine: type[Any], doubles: ModuleType, tally: Tally, chosen: argparse.Namespace, number: int,
    steps: int,
) -> Result:  # fmt: skip
    """So many steps; a failure is shrunk, unless that is not wanted."""
    result = Result()
    first = tally.steps
    phases = [Phase.generate] if chosen.no_shrink else [Phase.generate, Phase.shrink]
    with campaign.home("states") as folder:
        while tally.steps - first < steps and not result.violations:
            left = steps - (tally.steps - first)
            factory = seed(chosen.seed + 1_000_003 * number + tally.machines)(
                lambda: machine(doubles, folder)
            )
            try:
                run_state_machine_as_test(
                    factory,
                    settings=settings(
                        max_examples=max(1, left // chosen.steps),
                        stateful_step_count=chosen.steps,
                        deadline=None,
                        database=None,
                        phases=phases,
                        suppress_health_check=list(HealthCheck),
                        print_blob=True,
                    ),
                )
            except Exception:  # of any kind: what hypothesis found
                result.found(traceback.format_exc()[-6000:])
    return result


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=50, help="of one machine at most")
    parser.add_argument("--steps-total", type=int, help="go on until the log has so many")
    parser.add_argument("--no-shrink", action="store_true", help="end with the first failure")


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    chosen.workloads = ["random"]
    doubles = load(TESTS / "doubles.py")
    tally = Tally()
    machine = counted(load(TESTS / "index" / "test_state_machine.py").Oracle, tally)
    wanted = chosen.steps_total if chosen.steps_total is not None else (chosen.trials or _PORTION)
    before = logged(chosen.log) if chosen.steps_total is not None else 0
    started, number, code = time.monotonic(), 0, 0
    while before + tally.steps < wanted and code == 0:
        began, done, machines = time.monotonic(), tally.steps, tally.machines
        steps = min(_PORTION, wanted - before - tally.steps)
        result = portion(machine, doubles, tally, chosen, number, steps)
        seconds = time.monotonic() - began
        result.counts = {
            "done": tally.steps - done,
            "machines": tally.machines - machines,
            "total": before + tally.steps,
            "per_second": round((tally.steps - done) / seconds, 1),
        }
        code = campaign.finish(_NAME, chosen, result, seconds)
        number += 1
        if chosen.seconds is not None and time.monotonic() - started > chosen.seconds:
            break
    return code


if __name__ == "__main__":
    sys.exit(main())
