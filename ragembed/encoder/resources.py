"""How many cores this process may use, and torch held to that number.

A container is usually bounded by a cgroup quota, which neither `os.cpu_count` nor torch looks at:
eight threads on a quota of two cores wait for each other most of the time. The files are described
in the Linux kernel's "Control Group v2" (`cpu.max`) and "CFS Bandwidth Control" (version 1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def available_cores(root: Path = _ROOT) -> int:
    """Cores this process may keep busy, at least 1.

    The least of the CPU affinity and the cgroup quotas (versions 2 and 1, rounded up) of this
    process and all its ancestors; `os.cpu_count` where none of these is known.

    Args:
        root: folder that holds `proc` and `sys`.

    >>> 1 <= available_cores() <= os.cpu_count()
    True
    """
    known = [math.ceil(quota) for quota in _quotas(root)]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        known.append(len(os.sched_getaffinity(0)))
    return min(known, default=os.cpu_count() or 1)


def limit_threads(processes: int = 1, root: Path = _ROOT) -> int:
    """Lower torch's threads to the cores there are, or to an equal share of them.

    They are never raised, and left alone when the user has set `OMP_NUM_THREADS`.

    Args:
        processes: how many processes share the cores.
        root: folder that holds `proc` and `sys`.

    Returns:
        The number of threads in force.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        share = max(1, available_cores(root) // processes)
        if share < torch.get_num_threads():
            torch.set_num_threads(share)
    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Have the C library keep up to 60 MB of freed memory, rather than hand it back each time.

    Each batch frees the megabytes that the next one takes again; handed back in between, every page
    of them is faulted in anew, which cost a tenth of the time of encoding short texts. The GNU
    allocator adapts to the largest block of up to 32 MB it has seen freed (mallopt(3), under
    `M_MMAP_THRESHOLD`), so one such block is shown to it. Others ignore it.
    """
    import torch

    torch.empty(30 << 20, dtype=torch.uint8)


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the control groups this process is in and of their ancestors."""
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            for folder in _with_ancestors(mount, path):
                yield from _quota(*(_read(folder / "cpu.max") or "").split())
        elif "cpu" in controllers.split(","):
            # The controller is mounted under its own name or together with cpuacct.
            for name in {controllers, "cpu"}:
                for folder in _with_ancestors(mount / name, path):
                    parts = (_read(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period"))
                    yield from _quota(*(part.strip() for part in parts if part))


def _with_ancestors(mount: Path, path: str) -> list[Path]:
    """The folder of a control group and those above it, the mount's own included.

    Inside a container the path may be the host's, of which nothing is mounted but the last folder,
    as the mount itself; or lead out of it (`/../other`), where only the mount can be read.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _quota(quota: str = "", period: str = "") -> Iterator[float]:
    """Cores from microseconds of processor time per period; nothing where there is no bound."""
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):  # not "max", not -1
        yield int(quota) / int(period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None  # not this version of cgroups, or not mounted here: it bounds nothing
