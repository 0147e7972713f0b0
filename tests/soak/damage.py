"""Damage: bytes of an index change on the disk, in any file; no answer may be wrong without a word.

Each trial takes an index (updates and deletes behind it, two FAISS files, several tantivy segments; in
some a log that has not been folded in, two models), damages one file, and asks: documents, status,
and queries of every mode, with and without a filter. A forked judge does many trials, one after the
other. The outcomes:

right    every answer is as before
refused  some questions end with an error of the library's own, all others are answered as before
told     answers differ, and a warning had been logged by then
found    answers differ without a word, and `verify` reports a problem
wrong    answers differ, nothing was said, and `verify` finds nothing: a violation

Beside these `false`: a hit whose text, path, span, title or metadata were never stored, without a
warning. That is a violation whatever `verify` says; so are a signal, a hang and any other exception.

    python tests/soak/damage.py [--trials 10000] [--seed N] [--only N] [--log docs/soak.jsonl]

`--only` does one trial of a seed and says what it did; `--plant` forges rows with good checksums,
which has to be noticed.
"""

from __future__ import annotations

import sys

import campaign  # isort: skip
import argparse
import json
import logging
import os
import random
import select
import shutil
import signal
import sqlite3
import struct
import time
import traceback
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from asking import LISTINGS, Template, Warnings, asked_of
from basics import SECOND, embedder, opened
from campaign import Clock, Result
from sound import KINDS, made

from ragembed.errors import RagembedError
from ragembed.index.checksums import row_crc
from ragembed.index.disk import DATABASE

_PATIENCE = 60.0  # seconds for one trial
_SECTOR = 512
_LOG = f"{DATABASE}-wal"
_FRAME, _LOG_HEADER = 24, 32  # bytes in front of a page in the log, and of the whole log


# -- damaging ----------------------------------------------------------------------------------


def lay_out(template: Template, index: Path) -> None:
    """A copy for one trial. Files that are never changed in place are links."""
    for file in _files(template.index):
        target = index / file.relative_to(template.index)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.name.startswith(DATABASE) or file.suffix == ".json" or file.name == "LOCK":
            shutil.copyfile(file, target)
        else:
            os.link(file, target)


def _files(index: Path) -> list[Path]:
    """In an order that is the same each time; names hold random numbers."""
    files = [path for path in index.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.suffix, path.stat().st_size, path.name))


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done to which file; `where` names a table for the database and its log."""

    what: str
    file: str
    where: str


def damage(template: Template, index: Path, chance: random.Random) -> Damage:
    """Change one file of a laid-out index."""
    files = _files(index)
    database = [file for file in files if file.name in (DATABASE, _LOG) and file.stat().st_size]
    others = [file for file in files if file not in database]
    file = chance.choice(database if chance.random() < 0.65 else others)
    data = bytearray(file.read_bytes())
    kind = chance.choices(
        ("bit", "bits", "zeroed", "repeated", "cut", "appended", "swapped", "deleted"),
        (60, 10, 7, 7, 6, 4, 3, 3),
    )[0]
    if not data and kind not in ("deleted", "swapped"):
        kind = "appended"
    place = _place(data, chance)
    if kind in ("bit", "bits"):
        for n in range(1 if kind == "bit" else chance.randint(2, 8)):
            at = place if n == 0 else min(len(data) - 1, place + chance.randint(0, 64))
            data[at] ^= 1 << chance.randrange(8)
    elif kind in ("zeroed", "repeated"):
        sector = place // _SECTOR * _SECTOR
        size = min(_SECTOR, len(data) - sector)
        source = chance.randrange(max(1, len(data) // _SECTOR)) * _SECTOR
        new = bytes(size) if kind == "zeroed" else bytes(data[source : source + size])
        data[sector : sector + len(new)] = new
    elif kind == "cut":
        del data[place:]
    elif kind == "appended":
        data += chance.randbytes(chance.choice((1, 100, 5000)))
    elif kind == "swapped":
        other = chance.choice([f for f in files if f != file and f.suffix == file.suffix] or others)
        data, place = bytearray(other.read_bytes()), 0
    file.unlink()
    if kind != "deleted":
        file.write_bytes(data)
    where = _where(template, file.name, kind, bytes(data), place)
    return Damage(kind, f"{file.relative_to(index)} at {place}", where)


def _where(template: Template, name: str, kind: str, data: bytes, place: int) -> str:
    """The kind of file; for the database and its log the table, if the damage has one place."""
    if name not in (DATABASE, _LOG):
        return Path(name).suffix or name
    table = kind
    if kind in ("bit", "bits", "zeroed", "repeated"):
        table = _table(template, name, data, place)
    return f"{name.removeprefix(DATABASE) or 'db'} {table}"


def _place(data: bytes | bytearray, chance: random.Random) -> int:
    """Any byte; half of the time one that is not 0, since much of a page is empty."""
    if not data:
        return 0
    place = chance.randrange(len(data))
    if chance.random() < 0.5:
        for _ in range(20):
            if data[place]:
                break
            place = chance.randrange(len(data))
    return place


def _table(template: Template, name: str, data: bytes, place: int) -> str:
    """What a byte of the database, or of its log, belongs to."""
    (size,) = struct.unpack(">H", (template.index / DATABASE).read_bytes()[16:18])
    if name == DATABASE:
        return "header" if place < 100 else template.pages.get(place // size + 1, "free page")
    frame, within = divmod(place - _LOG_HEADER, size + _FRAME)
    if place < _LOG_HEADER or within < _FRAME:
        return "frame header"
    start = _LOG_HEADER + frame * (size + _FRAME)
    return template.pages.get(struct.unpack(">I", data[start : start + 4])[0], "free page")


def forge(_: Template, index: Path, chance: random.Random) -> Damage:
    """Planted: a passage that was never stored, with a checksum that fits."""
    with closing(sqlite3.connect(index / DATABASE)) as connection:
        rows = connection.execute(
            "SELECT id, document_id, position, start, end, first_line, last_line, page, heading, text "
            "FROM passage"
        ).fetchall()
        row = list(chance.choice(rows))
        row[9] = row[9].replace("a", "o")
        connection.execute(
            "UPDATE passage SET text = ?, crc = ? WHERE id = ?", (row[9], row_crc(*row), row[0])
        )
        connection.commit()
    return Damage("forged", DATABASE, "passage")


# -- judging -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one trial; `violation` says what may not be."""

    outcome: str
    damage: Damage
    violation: str = ""
    parts: str = ""
    detail: str = ""


def trial(
    templates: Sequence[Template], index: Path, seed: int, number: int, plant: bool
) -> Verdict:
    """Damage a copy and ask it; in this process, which may not survive that."""
    chance = random.Random(f"{seed} {number}")
    template = templates[number % len(templates)]
    lay_out(template, index)
    done = (forge if plant else damage)(template, index, chance)
    warnings = Warnings()
    logger = logging.getLogger("ragembed")
    logger.handlers, logger.propagate = [warnings], False
    what = f"trial {number} ({template.name}): {done.what} in {done.file}, {done.where}"
    try:
        asked = asked_of(index, warnings)
    except Exception:  # whatever the library raises here, and is not an error of its own
        return Verdict("raised", done, f"{what}: {traceback.format_exc()[-1500:]}")
    if false := asked.false_content(template):
        return Verdict("false", done, f"{what}: never stored: {false[0]}")
    differing = [
        question
        for question, answer in asked.answers.items()
        if answer not in {known[question] for known in template.answers}
    ]
    silent = [question for question in differing if not asked.warned[question]]
    parts = " ".join(sorted({_part(question) for question in silent or differing}))
    if not differing:
        return Verdict("refused" if asked.refused else "right", done)
    if not silent:
        return Verdict("told", done, "", parts, warnings.said[0])
    # On a copy that nobody has opened: a search mends what it can, and `verify` is not to miss that.
    again = random.Random(f"{seed} {number}")
    untouched = index / "untouched"
    lay_out(template, untouched)
    (forge if plant else damage)(template, untouched, again)
    problems = _verify(untouched)
    first = silent[0]
    before, now = template.answers[0][first], asked.answers[first]
    at = next((n for n, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), 0)
    detail = (
        f"{first}: {before[max(0, at - 60) : at + 60]!r} is now {now[max(0, at - 60) : at + 60]!r}"
    )
    if problems:
        return Verdict("found", done, "", parts, f"{detail}; {problems[0]}")
    return Verdict("wrong", done, f"{what}: silently wrong, {parts}: {detail}", parts)


def _part(question: str) -> str:
    return question if question in LISTINGS else "search"


def _verify(index: Path) -> list[str]:
    try:
        with opened(index, create=False) as corpus:
            return [f"{problem.kind} {problem.where}" for problem in corpus.verify().problems]
    except RagembedError as error:
        return [str(error)]


def judged(
    templates: Sequence[Template], folder: Path, seed: int, first: int, last: int, plant: bool
) -> Generator[tuple[int, Verdict], None, None]:
    """The trials first, ..., last - 1, in one child after the other."""
    number = first
    while number < last:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be_judge(templates, folder, seed, number, last, plant, writing)
        os.close(writing)
        hangs = False
        try:
            with open(reading, "rb", buffering=0) as pipe:
                rest = b""
                while True:
                    if not select.select([pipe], [], [], _PATIENCE)[0]:
                        hangs = True
                        os.kill(child, signal.SIGKILL)
                        break
                    chunk = pipe.read(1 << 16)
                    if not chunk:
                        break
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        outcome, what, violation, parts, detail = json.loads(line)
                        yield number, Verdict(outcome, Damage(*what), violation, parts, detail)
                        number += 1
        except BaseException:  # the caller has enough
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if number < last:
            how = f"hangs for {_PATIENCE:.0f} s" if hangs else f"ends with {code}"
            said = (folder / "judge").read_text(errors="replace")[-1500:]
            yield number, Verdict("ended", Damage("", "", ""), f"trial {number}: it {how}: {said}")
            number += 1


def _be_judge(
    templates: Sequence[Template],
    folder: Path,
    seed: int,
    first: int,
    last: int,
    plant: bool,
    pipe: int,
) -> None:
    try:
        descriptor = os.open(folder / "judge", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 2)
        for number in range(first, last):
            # A folder for each: threads of an index that gave up may still be writing into theirs.
            index = folder / f"index-{number}"
            verdict = trial(templates, index, seed, number, plant)
            shutil.rmtree(index, ignore_errors=True)
            done = verdict.damage
            line = json.dumps(
                [verdict.outcome, [done.what, done.file, done.where], verdict.violation,
                 verdict.parts, verdict.detail]
            ).encode() + b"\n"  # fmt: skip
            while line:
                line = line[os.write(pipe, line) :]
        os._exit(0)
    except BaseException:  # of the judge itself
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(72)


def keep(templates: Sequence[Template], folder: Path, seed: int, number: int) -> None:
    """Leave an index as a trial damaged it."""
    template = templates[number % len(templates)]
    index = folder / f"{seed}-{number}" / "index"
    lay_out(template, index)
    damage(template, index, random.Random(f"{seed} {number}"))


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", type=int, metavar="N", help="this trial of a seed, and no other")
    parser.add_argument(
        "--keep", type=Path, help="leave the index of each violation here, as damaged"
    )
    parser.add_argument("--found", action="store_true", help="print each trial that was `found`")
    parser.add_argument(
        "--plant", action="store_true", help="forge rows on purpose: this has to be noticed"
    )


def main() -> int:
    chosen = campaign.options(__doc__, extend)
    chosen.workloads = sorted(KINDS)
    embedder(), embedder(SECOND)
    clock = Clock(chosen.trials or (None if chosen.seconds else 10_000), chosen.seconds)
    result = Result()
    outcomes: Counter[str] = Counter()
    where: dict[str, Counter[str]] = {"found": Counter(), "told": Counter(), "wrong": Counter()}
    kinds: Counter[str] = Counter()
    with campaign.home("damage") as folder:
        templates = [made(folder, name) for name in sorted(KINDS)]
        first = chosen.only or 0
        last = first + 1 if chosen.only is not None else 1 << 31
        started = time.monotonic()
        done = 0
        verdicts = judged(templates, folder, chosen.seed, first, last, chosen.plant)
        for number, verdict in verdicts:
            outcomes[verdict.outcome] += 1
            kinds[verdict.damage.what] += 1
            if verdict.outcome in where:
                where[verdict.outcome][f"{verdict.damage.where}: {verdict.parts}"] += 1
            if verdict.violation:
                result.found(verdict.violation)
                if chosen.keep:
                    keep(templates, chosen.keep, chosen.seed, number)
            if chosen.only is not None or (chosen.found and verdict.outcome == "found"):
                print(number, verdict, file=sys.stderr)
            done += 1
            if clock.over(done):
                break
        verdicts.close()
        whole = not chosen.plant and chosen.only is None
        if whole and (not outcomes["right"] or not outcomes["refused"]):
            result.found("no damage was survived, or none was refused: vacuous")
        result.counts = {
            **({"planted": True} if chosen.plant else {}),
            "trials": done,
            "outcomes": dict(outcomes.most_common()),
            "damage": dict(kinds.most_common()),
            **{f"{name}_in": dict(counts.most_common()) for name, counts in where.items()},
            "per_second": round(done / (time.monotonic() - started), 1),
        }
    return campaign.finish("damage", chosen, result, clock.elapsed())


if __name__ == "__main__":
    sys.exit(main())
