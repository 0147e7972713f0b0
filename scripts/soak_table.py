"""Sum up the campaigns of tests/soak from their log, as a table for docs/reliability.md.

python scripts/soak_table.py [docs/soak.jsonl]

Runs add up over lines. Runs with a planted fault, which have to find something, are left out.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

LOG = Path(__file__).parents[1] / "docs" / "soak.jsonl"
# Campaign -> what it counts, in the order of the table.
COUNTED = {
    "kill9": ("kills", "the command line killed at random moments"),
    "kill_random": ("kills", "SIGKILL at random times, also while opening and recovering"),
    "kill_calls": ("kills", "SIGKILL at each write-side system call of each workload"),
    "faults": ("trials", "injected EIO, ENOSPC, EDQUOT, EMFILE, short writes"),
    "power_loss": ("states", "directory states after a power cut"),
    "damage": ("trials", "bytes damaged in any file"),
    "mutants": ("caught", "mutants of the store, caught"),
    "state_machine": ("done", "random operations against a dictionary"),
    "readers": ("answers", "answers of readers beside a live writer"),
}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of the log that count."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        row
        for row in rows
        if not row.get("planted") and row.get("forgotten", "nothing") == "nothing"
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """One line a campaign: what was done how often, what went wrong, how long it took."""
    sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counted = COUNTED[row["campaign"]][0]
        own = sums[row["campaign"]]
        own["runs"] += 1
        own["count"] += row.get(counted, 0)
        own["acknowledged"] += row.get("acknowledged", 0)
        for wrong in ("violations", "lost", "failures", "survived_mutants", "wrong"):
            own["wrong"] += row.get(wrong, 0) if isinstance(row.get(wrong, 0), int) else 0
        own["seconds"] += row["seconds"]
    lines = [
        "| campaign | what | done | acknowledged | wrong | minutes |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, (_, what) in COUNTED.items():
        if name in sums:
            own = sums[name]
            acknowledged = f"{own['acknowledged']:,}" if own["acknowledged"] else ""
            lines.append(
                f"| `{name}` | {what} | {own['count']:,} | {acknowledged} | {own['wrong']} "
                f"| {own['seconds'] / 60:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]) if len(sys.argv) > 1 else LOG)))
