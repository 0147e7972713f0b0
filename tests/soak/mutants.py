"""Mutants of the store: each takes one promise out of the code, and a test has to notice.

A mutant is a replacement of text, which has to match exactly once, in a copy of the package. The
commands that ought to notice are run against the copy in processes of their own; before that, each has
to pass on an unchanged copy. A mutant that no command notices is a hole in the tests.

    python tests/soak/mutants.py [--only NAME] [--log docs/soak.jsonl]
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from campaign import Result
from mutations import MUTANTS, Edit, Mutant

ROOT = Path(__file__).parents[2]
_LIMIT = 300.0  # seconds of one command
_IMPORTED = "import ragembed, ragembed.index.commit as c; print(ragembed.__file__, c.__file__)"


def misfits() -> list[str]:
    """Replacements that do not match exactly once, and names that are there twice."""
    found = []
    for mutant in MUTANTS:
        for edit in mutant.edits:
            count = (ROOT / edit.file).read_text(encoding="utf-8").count(edit.old)
            if count != 1:
                found.append(f"{mutant.name}: its text is {count} times in {edit.file}")
    names = [mutant.name for mutant in MUTANTS]
    return found + [f"{name} is there twice" for name in {n for n in names if names.count(n) > 1}]


class Copy:
    """The package and its tests, away from the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        library = folder / "lib" / "ragembed"
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / "ragembed", library, ignore=ignore)
        for part in ("cli", "index"):  # as pyproject.toml lays them out
            shutil.copytree(ROOT / part, library / part, ignore=ignore)
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def change(self, edit: Edit) -> Callable[[], None]:
        """Carry out an edit; returns what undoes it."""
        file = self.folder / "lib" / edit.file
        if edit.file.partition("/")[0] in ("cli", "index"):
            file = self.folder / "lib" / "ragembed" / edit.file
        before = file.read_text(encoding="utf-8")
        if before.count(edit.old) != 1:
            raise ValueError(f"{edit.old!r} is {before.count(edit.old)} times in {file}")
        file.write_text(before.replace(edit.old, edit.new), encoding="utf-8")
        return lambda: file.write_text(before, encoding="utf-8") and None

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command against the copy.

        Raises:
            RuntimeError: it is not the copy that is imported.
        """
        name, *options = shlex.split(command)
        if name == "pytest":
            words = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *options]
        else:
            seed = [] if "--seed" in options else ["--seed", "7"]
            words = [str(self.folder / "tests" / "soak" / f"{name}.py"), *seed, *options]
        return self._python(words)

    def check_import(self) -> None:
        """Make sure that it is the copy that is imported, and not the repository.

        Raises:
            RuntimeError: it is not, or it cannot be.
        """
        done = self._python(["-c", _IMPORTED])
        if done.returncode or not all(p.startswith(str(self.folder)) for p in done.stdout.split()):
            raise RuntimeError(f"not the copy is imported: {done.stdout} {done.stderr[-1500:]}")

    def _python(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": str(self.folder / "lib"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUST_BACKTRACE": "0",
        }
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=_LIMIT,
        )  # fmt: skip


def caught_by(copy: Copy, mutant: Mutant) -> str:
    """The command that notices a mutant, or nothing.

    Raises:
        RuntimeError: the mutant cannot be imported, or a command ends otherwise than by failing.
    """
    undo: list[Callable[[], None]] = []
    try:
        for edit in mutant.edits:
            undo.append(copy.change(edit))
        copy.check_import()
        for command in mutant.commands:
            try:
                done = copy.run(command)
            except subprocess.TimeoutExpired:
                return f"{command} (it hangs)"
            if done.returncode == 1:
                return command
            if done.returncode != 0:
                said = (done.stdout + done.stderr)[-1500:]
                raise RuntimeError(f"{mutant.name}: {command} ends with {done.returncode}: {said}")
        return ""
    finally:
        for back in reversed(undo):
            back()


def check_commands(copy: Copy, mutants: tuple[Mutant, ...]) -> list[str]:
    """The commands that fail where nothing was changed; these prove nothing."""
    copy.check_import()
    failing = []
    for command in dict.fromkeys(command for mutant in mutants for command in mutant.commands):
        done = copy.run(command)
        if done.returncode:
            failing.append(f"{command} ends with {done.returncode}: {done.stdout[-1500:]}")
    return failing


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="these mutants and no others"
    )
    parser.add_argument(
        "--trust", action="store_true", help="take it that the commands pass on the unchanged copy"
    )


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    chosen.workloads = []
    mutants = tuple(m for m in MUTANTS if not chosen.only or m.name in chosen.only)
    if unknown := set(chosen.only or ()) - {m.name for m in MUTANTS}:
        print(f"there is no mutant {sorted(unknown)}", file=sys.stderr)
        return 2
    result = Result(violations=misfits())
    started = time.monotonic()
    seconds: dict[str, float] = {}
    with campaign.home("mutants") as folder:
        copy = Copy(folder / "copy")
        if not chosen.trust:
            for failing in check_commands(copy, mutants):
                result.found(f"it fails where nothing was changed: {failing}")
        for mutant in mutants if not result.violations else ():
            began = time.monotonic()
            command = caught_by(copy, mutant)
            seconds[mutant.name] = round(time.monotonic() - began, 1)
            print(
                f"{mutant.name:36}{command or 'SURVIVED':70}{seconds[mutant.name]:6.1f} s",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            if not command:
                result.found(f"{mutant.name} survived {list(mutant.commands)}")
    result.counts = {
        "mutants": len(mutants),
        "caught": len(seconds) - len([v for v in result.violations if "survived" in v]),
        "seconds_of": seconds,
    }
    return campaign.finish("mutants", chosen, result, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
