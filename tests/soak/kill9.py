"""kill -9 campaign: no acknowledged document may be lost, whenever the process dies.

Each trial starts the real command line on a generated folder, reads its acknowledgements (`added PATH`
lines, printed once a batch is committed) and ends it with SIGKILL at a random moment: while it starts,
while it encodes, right at an acknowledgement, when the database's log grows (inside a commit), or in
the final phase that writes the FAISS checkpoint. Then the index must open, `verify` must find
nothing, and every document must be in a state it was given: the last acknowledged one, or a newer one
that was on disk. The next trial goes on with the same index and folder, after some files were changed,
added or deleted; now and then a run is let finish and the whole is compared, and a new index begun.

    python tests/soak/kill9.py --trials 50 [--seed N] [--files N] [--log docs/soak.jsonl]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import selectors
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import faiss

import ragembed
from ragembed import Corpus

MOMENTS = ("start", "encode", "acknowledgement", "log", "checkpoint")
# A child that says nothing for so long hangs; machines that run benchmarks meanwhile are slow.
PATIENCE = 300.0
_WORDS = (
    "river stone house light water paper window garden summer winter morning evening mountain valley "
    "bread music letter number picture question answer village station market forest island"
).split()
_SETTLING = 0.03  # seconds: how far a kill may lag behind the event it is aimed at


class Violation(AssertionError):
    """A promise that did not hold."""


@dataclass
class Tally:
    """What a campaign did."""

    kills: int = 0
    finished: int = 0
    acknowledged: int = 0
    killed_after_acknowledgement: int = 0
    directories: int = 0
    moments: Counter[str] = field(default_factory=Counter)


class Place:
    """A folder, its index, and what the index may hold of each file.

    `states[path]` are the words a file may be stored with (None: not stored): the last acknowledged
    one first, then those that were on disk in runs that did not live to acknowledge them.
    """

    def __init__(self, base: Path, files: int, chance: random.Random) -> None:
        self.folder = base / "files"
        self.index = base / "index"
        self.folder.mkdir(parents=True)
        self.chance = chance
        self.serial = 0
        self.on_disk: dict[str, str] = {}
        self.states: dict[str, list[str | None]] = {}
        for _ in range(files):
            self.write(f"{len(self.states):05}.txt")

    def write(self, path: str) -> None:
        self.serial += 1
        word = f"zq{self.serial}x"
        filler = " ".join(self.chance.choices(_WORDS, k=self.chance.randint(3, 9)))
        (self.folder / path).write_text(f"{word} {filler}\n", encoding="utf-8")
        self.on_disk[path] = word
        self.states.setdefault(path, [None])

    def change(self) -> None:
        """Rewrite, delete and add files, so that the next run has something to do."""
        paths = sorted(self.on_disk)
        for path in self.chance.sample(paths, len(paths) // 3):
            self.write(path)
        for path in self.chance.sample(paths, len(paths) // 12):
            (self.folder / path).unlink()
            del self.on_disk[path]
        for _ in range(len(paths) // 8):
            self.write(f"{len(self.states):05}.txt")

    def pending(self) -> int:
        """Files whose state on disk has not been acknowledged."""
        return sum(1 for path, states in self.states.items() if states != [self.on_disk.get(path)])

    def begin_run(self) -> None:
        for path, states in self.states.items():
            now = self.on_disk.get(path)
            if now not in states:
                states.append(now)

    def settle(self) -> None:
        """A run came to its end: all that is on disk is stored, acknowledged or not."""
        self.states = {path: [self.on_disk.get(path)] for path in self.states}

    def acknowledge(self, line: str) -> bool:
        """Take in a line of the child's; whether it acknowledges a change."""
        what, _, path = line.partition(" ")
        if what not in ("added", "updated", "renamed", "removed") or path not in self.states:
            return False
        now = self.on_disk.get(path)
        if self.states[path] == [now]:
            raise Violation(f"{line!r}, but its present state had been acknowledged before")
        if (what == "removed") != (now is None):
            raise Violation(f"{line!r}, but on disk it is {now!r}")
        self.states[path] = [now]
        return True

    def check(self, *, search: bool) -> None:
        """Open the index as a new process would and compare it with what was acknowledged."""
        if not self.index.exists():
            if any(states[0] is not None for states in self.states.values()):
                raise Violation(f"{self.index} is gone")
            return
        with Corpus(self.index) as corpus:
            self._verified(corpus)
            stored = {document.path.decode() for document in corpus.documents()}
            if strangers := stored - self.states.keys():
                raise Violation(f"documents that never were: {sorted(strangers)[:5]}")
            for path, states in self.states.items():
                if (path not in stored and None not in states) or (
                    path in stored and states == [None]
                ):
                    raise Violation(f"{path} is stored: {path in stored}, due is one of {states}")
            if search:
                for path, states in self.states.items():
                    self._search(corpus, path, states, path in stored)
                self._verified(corpus)

    def _verified(self, corpus: Corpus) -> None:
        if problems := corpus.verify().problems:
            raise Violation(f"verify: {problems[:5]}")

    def _search(self, corpus: Corpus, path: str, states: list[str | None], stored: bool) -> None:
        found = []
        for word in (state for state in states if state is not None):
            hits = [hit for hit in corpus.search(word, k=5, mode="lexical") if word in hit.text]
            if [hit.path for hit in hits] not in ([], [path]):
                raise Violation(f"{word} of {path} is found in {[hit.path for hit in hits]}")
            found += hits
        if len(found) != int(stored):
            raise Violation(f"{path} is stored: {stored}, and found {len(found)} times: {states}")


class Run:
    """One child process, from its start to its end."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.acknowledged = 0
        self.lines: list[str] = []
        self._rest = b""
        place.begin_run()
        command = [sys.executable, "-m", "ragembed", "index", "--index", str(place.index)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAGEMBED_")}
        self.started = time.monotonic()
        # bufsize=0: a buffered reader would keep acknowledgements from us when the child is gone.
        self.child = subprocess.Popen(
            [*command, "--verbose", str(place.folder)],
            cwd=place.folder.parent,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self.child.stderr is not None
        self.descriptor = self.child.stderr.fileno()
        os.set_blocking(self.descriptor, False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.descriptor, selectors.EVENT_READ)

    def read(self, timeout: float) -> bool:
        """Take in what the child has written; False once it has closed its end."""
        if not self.selector.select(timeout):
            return True
        chunk = os.read(self.descriptor, 1 << 16)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:  # a line without its end was never acknowledged
            text = line.decode()
            if self.place.acknowledge(text):
                self.acknowledged += 1
            else:
                self.lines.append(text)
        return bool(chunk)

    def read_until(self, moment: float) -> bool:
        """Read up to a point in time; False when the child ended before."""
        while (left := moment - time.monotonic()) > 0:
            if not self.read(left):
                return False
        return True

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)

    def end(self) -> int:
        """Read to the end of the child."""
        while self.read(PATIENCE):
            if time.monotonic() - self.started > PATIENCE:
                self.child.kill()
                self.child.wait()
                raise Violation(f"the child hangs; it said {self.lines[-5:]}")
        code = self.child.wait(PATIENCE)
        self.selector.close()
        assert self.child.stderr is not None
        self.child.stderr.close()
        return code

    def fingerprint_of_log(self) -> tuple[int, int]:
        try:
            status = os.stat(self.place.index / "ragembed.db-wal")
        except OSError:
            return (0, 0)
        return (status.st_size, status.st_mtime_ns)


def wait_for(run: Run, moment: str, chance: random.Random, usual: float) -> bool:
    """Return at the moment to kill; False when the child ended before it came."""
    if moment == "start":
        return run.read_until(run.started + chance.uniform(0.0, 1.5))
    if moment == "encode":
        return run.read_until(run.started + chance.uniform(0.5, max(1.0, usual)))
    if moment == "log":
        changes = chance.randint(1, 8)
        before = run.fingerprint_of_log()
        while changes:
            if not run.read(0.0005):
                return False
            if (now := run.fingerprint_of_log()) != before:
                changes, before = changes - 1, now
    else:
        everything = moment == "checkpoint"
        while not run.acknowledged or (everything and run.place.pending()):
            if not run.read(1.0):
                return False
    return run.read_until(time.monotonic() + chance.uniform(0.0, _SETTLING))


def finish(place: Place, tally: Tally) -> float:
    """Let a run finish, and compare everything; returns the seconds it took."""
    run = Run(place)
    code = run.end()
    if code:
        raise Violation(f"exit code {code} where nothing was killed: {run.lines[-5:]}")
    seconds = time.monotonic() - run.started
    tally.finished += 1
    tally.acknowledged += run.acknowledged
    place.settle()
    place.check(search=True)
    return seconds


def trial(place: Place, moment: str, usual: float, tally: Tally) -> None:
    """Kill one run at a moment of the given kind, if it lives to see it, and check the index."""
    run = Run(place)
    if wait_for(run, moment, place.chance, usual):
        run.kill()
    code = run.end()
    if code == -signal.SIGKILL:
        tally.kills += 1
        tally.moments[moment] += 1
        tally.killed_after_acknowledgement += bool(run.acknowledged)
    elif code == 0:  # it was done before the moment came
        tally.finished += 1
        place.settle()
    else:
        raise Violation(f"{moment}: the child ended with {code}: {run.lines[-5:]}")
    tally.acknowledged += run.acknowledged
    place.check(search=place.chance.random() < 0.5)


def campaign(base: Path, *, trials: int, files: int, seed: int) -> Tally:
    """Kill `trials` runs; raises Violation when a promise does not hold."""
    chance = random.Random(seed)
    tally = Tally(directories=1)
    place = Place(base / "place-1", files, chance)
    usual = 6.0  # seconds of a whole run
    while tally.kills < trials:
        if tally.kills and chance.random() < 0.2:
            usual = finish(place, tally)
            shutil.rmtree(place.index.parent)
            tally.directories += 1
            place = Place(base / f"place-{tally.directories}", files, chance)
        elif place.pending() < files // 3:
            place.change()
        trial(place, MOMENTS[tally.kills % len(MOMENTS)], usual, tally)
    finish(place, tally)
    shutil.rmtree(place.index.parent)
    if not tally.killed_after_acknowledgement:
        raise Violation("no run was killed after an acknowledgement: this proved nothing")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--log", type=Path, help="append one JSON line about this campaign")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    base = Path(tempfile.mkdtemp(prefix="ragembed-kill9-"))
    started = time.monotonic()
    try:
        tally = campaign(base, trials=options.trials, files=options.files, seed=seed)
    except Violation as violation:
        print(f"seed {seed}: {violation}\nthe index is left in {base}", file=sys.stderr)
        return 1
    shutil.rmtree(base)
    line = json.dumps(
        {
            "campaign": "kill9",
            "date": time.strftime("%Y-%m-%d"),
            "seed": seed,
            "trials": options.trials,
            "files": options.files,
            "kills": tally.kills,
            "moments": dict(tally.moments),
            "killed_after_acknowledgement": tally.killed_after_acknowledgement,
            "finished": tally.finished,
            "directories": tally.directories,
            "acknowledged": tally.acknowledged,
            "lost": 0,
            "seconds": round(time.monotonic() - started),
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
    if options.log is not None:
        with options.log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
