"""What the campaigns share: a home in memory, templates, options, and the line in the log.

Import it before numpy: a process with threads of OpenBLAS or OpenMP is not safe to fork.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
from basics import Place, embedder
from plan import Plan
from workloads import WORKLOADS, planned

import ragembed

_MEMORY = "/dev/shm"


@dataclass(slots=True)
class Result:
    """What a campaign did, and what it found."""

    counts: dict[str, object] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def found(self, violation: str) -> None:
        """Take note of a violation, and say the first ones at once."""
        self.violations.append(violation)
        if len(self.violations) <= 20:
            print(f"VIOLATION: {violation}\n", file=sys.stderr, flush=True)


def options(
    description: str | None, extend: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """The command line: what all campaigns know, and what `extend` adds."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=None, help="end after so many")
    parser.add_argument("--seconds", type=float, default=None, help="end after so long")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--log", type=Path, help="append one JSON line about this run")
    parser.add_argument(
        "--workloads", type=lambda text: text.split(","), default=sorted(WORKLOADS), metavar="A,B"
    )
    extend(parser)
    found = parser.parse_args()
    if unknown := set(found.workloads) - WORKLOADS.keys():
        parser.error(f"unknown workloads {sorted(unknown)}; there are {sorted(WORKLOADS)}")
    if found.seed is None:
        found.seed = random.randrange(1 << 32)
    print(f"seed {found.seed}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, _stop)
    return found


_STOPPED = threading.Event()


def _stop(*_: object) -> None:
    """Ctrl-C: end after this trial, and write down what was done; a second one ends at once."""
    _STOPPED.set()
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def home(name: str) -> Iterator[Path]:
    """A directory for a campaign, in memory where there is that; kept when it ends with an error."""
    base = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=f"ragembed-{name}-", dir=base))
    try:
        yield folder
    except BaseException:
        print(f"what was found is left in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def in_child(work: Callable[[], None]) -> None:
    """Do something in a forked child, so that its threads do not stay here."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(70)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError(f"a child that had to prepare something ended with {code}")


class Templates:
    """Workloads with their plans, each prepared once at the place where it will run."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        embedder()
        self.place = Place(folder / "place")
        self.plans: dict[str, Plan] = {}
        self._folder = folder
        for name in names:
            plan = planned(name)
            self.place.clear()
            in_child(lambda plan=plan: plan.prepare(self.place))
            shutil.copytree(self.place.home, self.folder(name))
            self.plans[name] = plan

    def folder(self, name: str) -> Path:
        """Where a prepared place was set aside."""
        return self._folder / "templates" / name

    def lay_out(self, name: str) -> tuple[Place, Plan]:
        """The place as a run of a workload finds it."""
        self.place.become(self.folder(name))
        return self.place, self.plans[name]


def forget_a_document(index: Path) -> None:
    """Planted loss: delete a document behind the library's back."""
    with closing(sqlite3.connect(index / "ragembed.db")) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("DELETE FROM document WHERE id = (SELECT max(id) FROM document)")
        connection.commit()


class Clock:
    """Counts trials and seconds against what was asked for."""

    def __init__(self, trials: int | None, seconds: float | None) -> None:
        self.trials = trials
        self.seconds = seconds
        self.started = time.monotonic()
        self._told = self.started

    def over(self, done: int) -> bool:
        """Whether a campaign that has done so much is at its end."""
        now = time.monotonic()
        if now - self._told > 30:
            self._told = now
            print(f"{done} after {now - self.started:.0f} s", file=sys.stderr, flush=True)
        if _STOPPED.is_set() or (self.trials is not None and done >= self.trials):
            return True
        return self.seconds is not None and now - self.started > self.seconds

    def elapsed(self) -> float:
        return time.monotonic() - self.started


def finish(name: str, chosen: argparse.Namespace, result: Result, seconds: float) -> int:
    """Print what was found, append the line to the log; the exit code."""
    line = json.dumps(
        {
            "campaign": name,
            "date": time.strftime("%Y-%m-%d"),
            "seed": chosen.seed,
            "workloads": chosen.workloads,
            **result.counts,
            "violations": len(result.violations),
            "seconds": round(seconds),
            "versions": {
                "ragembed": ragembed.__version__,
                "python": platform.python_version(),
                "sqlite": sqlite3.sqlite_version,
                "faiss": faiss.__version__,
                "tantivy": version("tantivy"),
            },
        }
    )
    print(line)
    if chosen.log is not None:
        with chosen.log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
    return 1 if result.violations else 0
