"""How many cores there are: affinity and cgroup quotas, read from a file system laid out here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ragembed.encoder.resources import available_cores, limit_threads


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("cores", "files"),
    [
        (16, {}),
        (3, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "300000 100000\n"}),
        (2, {"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/cpu.max": "150000 100000\n"}),
        (1, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "1000 100000\n"}),
        (16, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}),
        (16, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "6400000 100000\n"}),
        (
            4,  # an ancestor's bound is the tighter one
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/cpu.max": "400000 100000\n",
                f"{V2}/a/b/cpu.max": "800000 100000\n",
            },
        ),
        (  # the path is the host's; the container's own group is the mount
            5,
            {"proc/self/cgroup": "0::/docker/f00\n", f"{V2}/cpu.max": "500000 100000\n"},
        ),
        (
            16,  # a path that leads out of the mount is not followed
            {
                "proc/self/cgroup": "0::/../a\n",
                "sys/fs/a/cpu.max": "100000 100000\n",
                f"{V2}/cpu.stat": "",
            },
        ),
        (
            2,
            {
                "proc/self/cgroup": "12:memory:/x\n4:cpu,cpuacct:/x\n0::/\n",
                f"{V1}/x/cpu.cfs_quota_us": "110000\n",
                f"{V1}/x/cpu.cfs_period_us": "100000\n",
            },
        ),
        (
            7,
            {
                "proc/self/cgroup": "4:cpuacct,cpu:/x/y\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "700000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
        ),
        (
            16,
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
        ),
        (16, {"proc/self/cgroup": "no cgroup\n\n0::\n", f"{V2}/cpu.max": "\xff many\n"}),
    ],
)
def test_the_least_bound_counts(tmp_path: Path, cores: int, files: dict[str, str]) -> None:
    assert available_cores(lay_out(tmp_path, files)) == cores


def test_affinity_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "400000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5})
    assert available_cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores(tmp_path) == 4


def test_where_nothing_is_known_all_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores(tmp_path) == 32
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


@pytest.fixture
def six_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("processes", "threads"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_threads_are_lowered_to_the_cores_or_a_share_of_them(
    tmp_path: Path, six_threads: None, processes: int, threads: int
) -> None:
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "400000 100000\n"})
    assert limit_threads(processes, tmp_path) == threads == torch.get_num_threads()


def test_threads_are_never_raised(tmp_path: Path, six_threads: None) -> None:
    assert available_cores(tmp_path) == 16
    assert limit_threads(root=tmp_path) == 6 == torch.get_num_threads()


def test_the_users_own_number_stands(
    tmp_path: Path, six_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "100000 100000\n"})
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert limit_threads(root=tmp_path) == 6 == torch.get_num_threads()
