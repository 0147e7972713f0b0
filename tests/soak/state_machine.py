"""The long form of `tests/index/test_state_machine.py`: more examples, more steps, a log line.

python tests/soak/state_machine.py --examples 500 --steps 50 [--log docs/soak.jsonl]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

import ragembed

TESTS = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--log", type=Path, help="append one JSON line about this run")
    options = parser.parse_args()
    oracle = load(TESTS / "index" / "test_state_machine.py").Oracle
    doubles = load(TESTS / "doubles.py")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ragembed-states-") as folder:
        run_state_machine_as_test(
            lambda: oracle(doubles, Path(folder)),
            settings=settings(
                max_examples=options.examples,
                stateful_step_count=options.steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
    line = json.dumps(
        {
            "campaign": "state_machine",
            "date": time.strftime("%Y-%m-%d"),
            "examples": options.examples,
            "steps": options.steps,
            "failures": 0,
            "seconds": round(time.monotonic() - started),
            "versions": {"ragembed": ragembed.__version__},
        }
    )
    print(line)
    if options.log is not None:
        with options.log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
