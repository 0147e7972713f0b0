"""The short forms of damage, readers, mutants and the state machine; see tests/test_soak.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).parent / "soak"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def campaign(name: str, *options: str) -> tuple[dict[str, Any], str]:
    """Run a campaign; its last line for the log, and what it said."""
    command = [sys.executable, str(SOAK / f"{name}.py"), "--seed", "7", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode == 1) == bool(counts["violations"])
    return counts, done.stderr


def sound(name: str, *options: str) -> dict[str, Any]:
    """Run a campaign that has to find nothing."""
    counts, said = campaign(name, *options)
    assert counts["violations"] == 0, said
    return counts


def asked(script: str, *arguments: str) -> Any:
    """What a few lines say in a process of their own, among the campaigns."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=SOAK, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_damage_is_never_answered_wrongly_without_a_word() -> None:
    counts = sound("damage", "--trials", "90")
    outcomes = counts["outcomes"]
    assert sum(outcomes.values()) == counts["trials"] == 90
    assert outcomes["right"] > 20 and outcomes["refused"] and len(counts["damage"]) >= 6


@pytest.mark.slow
def test_a_forged_passage_is_noticed() -> None:
    counts, said = campaign("damage", "--trials", "3", "--plant")
    assert counts["outcomes"] == {"false": 3}
    assert "never stored" in said


@pytest.mark.slow
def test_readers_see_one_commit_beside_a_writer_that_is_killed() -> None:
    counts = sound("readers", "--seconds", "6")
    assert counts["answers"] > 50 and counts["rounds"] >= 3 and counts["kills"]


HITS = """
import json
from types import SimpleNamespace as Hit
from readers import Seen, judged
def hits(number, extras=3, file=("f.txt",), texts=12):
    ids = [f"text{n}" for n in range(texts)] + [f"extra{n}" for n in range(extras)]
    found = [Hit(path=id, text=f"round{number} burrow", also=()) for id in ids]
    return found + [Hit(path=path, text="A filed burrow.", also=()) for path in file]
mixed = hits(5)[:6] + hits(6)[6:]
cases = [hits(5), hits(5, extras=0), hits(5, extras=1),
         hits(5, file=()), hits(5, file=("f.txt", "g.txt")),
         hits(4), hits(5, texts=11), mixed, hits(5) + hits(5)[:1]]
print(json.dumps([judged(case, 5, Seen()) for case in cases]))
"""


def test_an_answer_that_is_not_one_commit_is_noticed() -> None:
    whole, also_whole, *broken = asked(HITS)
    assert (whole, also_whole) == ("", "")
    assert len(broken) == 7 and all(broken)


GROWTH = """
import json
from readers import growth
flat = [(n, 100 + n % 7, 12 + n % 3) for n in range(200)]
print(json.dumps([growth(s)[1] for s in (
    flat, [(t, m + 25 * (t > 120), f) for t, m, f in flat],
    [(t, m + t / 4, f) for t, m, f in flat], [(t, m, f + t // 20) for t, m, f in flat])]))
"""


def test_what_grows_is_noticed() -> None:
    flat, step, memory, files = asked(GROWTH)
    assert flat == step == "" and "memory" in memory and "files" in files


TRACES = """
import json, sys
from pathlib import Path
from basics import opened
from traces import traces_of
from ragembed import Document
index, purge = Path(sys.argv[1]), sys.argv[2] == "purge"
text = "quaggaq of the veld."
found = []
with opened(index, create=True) as corpus:
    corpus.add([Document(id=id, text=f"{id}q is here.") for id in "abcdef"])
    corpus.add([Document(id="z", text=text)])
    found.append(traces_of(text, index))
    corpus.remove(["z"], purge=purge)
found.append(traces_of(text, index))
print(json.dumps(found))
"""


@pytest.mark.parametrize("how", ["purge", "remove"])
def test_what_is_left_of_a_text_is_seen(tmp_path: Path, how: str) -> None:
    stored, left = asked(TRACES, str(tmp_path / "index"), how)
    kinds = " ".join(stored)
    assert all(sign in kinds for sign in ("mark in", "compressed", "hash in", "vector of", "term"))
    assert bool(left) == (how == "remove")


@pytest.mark.slow
def test_the_state_machine_counts_its_steps(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for total in ("40", "80"):
        sound("state_machine", "--steps-total", total, "--steps", "20", "--log", str(log))
    first, *_, last = map(json.loads, log.read_text().splitlines())
    assert first["total"] == first["done"] >= 40
    assert last["total"] >= 80


def test_every_mutant_still_fits() -> None:
    misfits, count = asked(
        "import json, mutants as m; print(json.dumps([m.misfits(), len(m.MUTANTS)]))"
    )
    assert misfits == [] and count >= 27


@pytest.mark.slow
def test_mutants_are_caught() -> None:
    names = asked("import json, mutations; print(json.dumps(mutations.QUICK))")
    counts = sound("mutants", *(word for name in names for word in ("--only", name)))
    assert counts["caught"] == counts["mutants"] == len(names)
