"""The short forms of the campaigns in tests/soak, and losses planted to see that they notice.

The campaigns run in processes of their own: they fork, which is not safe once FAISS or torch
have started threads in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).parent / "soak"


@pytest.fixture(scope="module")
def traceable() -> None:
    """Skips where calls cannot be traced; asked in another process, since asking forks."""
    check = "import tracer; print(tracer.unavailable())"
    done = subprocess.run([sys.executable, "-c", check], cwd=SOAK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # a tracer that is broken is no reason to skip
    if reason := done.stdout.strip():
        pytest.skip(reason)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def campaign(name: str, *options: str) -> tuple[dict[str, Any], str]:
    """Run a campaign; its line for the log, and what it said."""
    command = [sys.executable, str(SOAK / f"{name}.py"), "--seed", "7", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), done.stderr
    counts = json.loads(done.stdout)
    assert (done.returncode == 1) == bool(counts["violations"])
    return counts, done.stderr


def sound(name: str, *options: str) -> dict[str, Any]:
    """Run a campaign that has to find nothing."""
    counts, said = campaign(name, *options)
    assert counts["violations"] == 0, said
    return counts


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
def test_a_kill_at_any_system_call_loses_nothing() -> None:
    counts = sound("kill_calls", "--trials", "16")
    assert counts["kills"] == counts["trials"] >= 12
    assert len(counts["calls"]) >= 5 and min(counts["calls"].values()) > 500
    assert counts["killed_after_acknowledgement"] >= 5


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
def test_disk_faults_end_in_an_error_or_are_survived() -> None:
    counts = sound("faults", "--trials", "16")
    assert counts["trials"] >= 12 and counts["injected"] >= counts["trials"]
    assert counts["survived"] and counts["clean_errors"] and counts["acknowledged"]


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
def test_a_power_cut_loses_nothing_that_was_acknowledged() -> None:
    counts = sound("power_loss", "--trials", "60")
    assert counts["states"] >= 60
    assert counts["after_acknowledgement"] >= 30


@needs_fork
@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing() -> None:
    counts = sound("kill_random", "--trials", "10")
    assert counts["kills"] == counts["trials"] == 10
    assert counts["acknowledged"] >= 10


# -- the campaigns can fail --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("name", ["kill_calls", "faults"])
def test_a_document_lost_to_a_traced_run_is_noticed(name: str) -> None:
    counts, said = campaign(name, "--trials", "4", "--workloads", "update", "--plant")
    assert counts["violations"] >= 2
    assert "stored is" in said or "verify" in said


@needs_fork
@pytest.mark.slow
def test_a_document_lost_to_a_kill_is_noticed() -> None:
    counts, said = campaign("kill_random", "--trials", "3", "--plant")
    assert counts["violations"] >= 1
    assert "stored is" in said or "verify" in said


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize(
    ("forgotten", "workload"),
    [("database", "update"), ("vectors", "checkpoint"), ("names", "checkpoint")],
)
def test_a_forgotten_fsync_is_noticed(forgotten: str, workload: str) -> None:
    options = ("--trials", "40", "--workloads", workload, "--forget", forgotten)
    counts, said = campaign("power_loss", *options)
    assert counts["violations"] >= 4
    assert workload in said


# -- the tracer --------------------------------------------------------------------------------

TRACED = """
import errno, json, os, sys, threading
from pathlib import Path
import tracer
folder, how = Path(sys.argv[1]), sys.argv[2]
def work():
    with open(folder / "one", "wb", buffering=0) as file:
        file.write(b"first ")
        thread = threading.Thread(target=lambda: os.pwrite(file.fileno(), b"second", 6))
        thread.start()
        thread.join()
        os.fsync(file.fileno())
    os.rename(folder / "one", folder / "two")
    open("/dev/null", "wb").write(b"elsewhere")
def act(call):
    if how == "kill" and call.name == "pwrite64":
        return tracer.Kill()
    if how == "fail" and call.name.startswith("rename"):
        return tracer.Fail(errno.EDQUOT)
    if how == "short" and call.name == "write":
        return tracer.Shorten()
outcome = tracer.trace(work, folder, act, record=True, errors=folder.parent / "errors")
calls = [[c.name, c.path.rpartition("/")[2], c.offset, c.data.decode(), c.result] for c in outcome.calls]
print(json.dumps([outcome.code, outcome.count, len(outcome.acted), calls]))
"""


def traced(tmp_path: Path, how: str) -> tuple[int, int, int, list[list[Any]]]:
    folder = tmp_path / "watched"
    folder.mkdir()
    command = [sys.executable, "-c", TRACED, str(folder), how]
    done = subprocess.run(command, cwd=SOAK, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    code, count, acted, calls = json.loads(done.stdout)
    return code, count, acted, calls


@pytest.mark.usefixtures("traceable")
def test_the_tracer_sees_every_call_of_every_thread(tmp_path: Path) -> None:
    code, count, acted, calls = traced(tmp_path, "watch")
    assert (code, count, acted) == (0, 5, 0)
    assert [call[0].removesuffix("at") for call in calls] == [
        *("open", "write", "pwrite64", "fsync", "rename")
    ]
    assert calls[1][1:] == ["one", 0, "first ", 6]
    assert calls[2][1:] == ["one", 6, "second", 6]
    assert (tmp_path / "watched" / "two").read_bytes() == b"first second"


@pytest.mark.usefixtures("traceable")
def test_a_killed_call_does_not_happen(tmp_path: Path) -> None:
    code, count, acted, _ = traced(tmp_path, "kill")
    assert (code, count, acted) == (-9, 3, 1)
    assert (tmp_path / "watched" / "one").read_bytes() == b"first "


@pytest.mark.usefixtures("traceable")
def test_a_failed_call_does_nothing_and_returns_its_error(tmp_path: Path) -> None:
    code, _, acted, calls = traced(tmp_path, "fail")
    assert (code, acted, calls[-1][4]) == (70, 1, -122)
    assert "Disk quota exceeded" in (tmp_path / "errors").read_text()
    assert (tmp_path / "watched" / "one").read_bytes() == b"first second"


@pytest.mark.usefixtures("traceable")
def test_a_shortened_write_takes_a_half(tmp_path: Path) -> None:
    code, _, acted, calls = traced(tmp_path, "short")
    assert (code, acted, calls[1][4]) == (0, 1, 3)
    assert (tmp_path / "watched" / "two").read_bytes() == b"fir\0\0\0second"


# -- the disk that loses power -----------------------------------------------------------------

DISK = """
import json, random, sys
from pathlib import Path
from disk import Disk
from calls import Call
import os
top, forget = Path(sys.argv[1]), sys.argv[2]
disk = Disk(top, top)
calls = [Call(1, "openat", f"{top}/f", flags=os.O_CREAT | os.O_WRONLY, existed=False)]
for n in range(4):
    data = bytes([65 + n]) * 512
    calls.append(Call(2, "write", f"{top}/f", offset=n * 512, data=data, result=512))
calls.append(Call(3, "fsync", f"{top}/f"))
calls += [Call(4, "rename", f"{top}/f", f"{top}/g"), Call(5, "fsync", f"{top}")]
for call in calls:
    if call.name != "fsync" or call.path != f"{top}{forget}":
        disk.apply(call)
chance = random.Random(1)
found = {json.dumps({k: v.decode() for k, v in disk.after_cut(chance).items()}) for _ in range(300)}
print(json.dumps(sorted(found)))
"""


@pytest.mark.parametrize("forget", ["/nothing", "/f", ""])
def test_what_was_synced_is_there_after_a_cut_and_nothing_else_is_sure(
    tmp_path: Path, forget: str
) -> None:
    command = [sys.executable, "-c", DISK, str(tmp_path), forget]
    done = subprocess.run(command, cwd=SOAK, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    states = [json.loads(state) for state in json.loads(done.stdout)]
    whole = "".join(letter * 512 for letter in "ABCD")
    if forget == "/nothing":
        assert states == [{"g": whole}]
    elif forget == "":  # names: created or not, renamed or not, and whole where there
        assert [list(state) for state in sorted(states, key=str)] == [["f"], ["g"], []]
        assert {text for state in states for text in state.values()} == {whole}
    else:  # data: any of the pieces, and a size that is old or new
        contents = {state["g"] for state in states}
        assert {"", whole, "A" * 512} <= contents
        assert any("\0" in text for text in contents)
        assert len(contents) >= 16
