"""Draw docs/growth.svg: what grows how fast with the number of windows.

    python scripts/plot_growth.py [--log docs/growth.jsonl] [--out docs/growth.svg]

Needs matplotlib (`pip install -e '.[dev]'`); the log comes from benchmarks/growth.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
# A contrast of more than 4 to 1 against white and against a dark page.
COLOURS = ("#2f7fd6", "#c05a12", "#2a8647", "#a855c7")
GREY = "#7a7a7a"
Figure = Callable[[dict[str, Any]], float]
PANELS: tuple[tuple[str, tuple[tuple[str, Figure], ...]], ...] = (
    (
        "a query, ms",
        (
            ("exact scan, float32", lambda r: r["answers"]["f32_ms"]),
            ("exact scan, float16", lambda r: r["answers"]["f16_ms"]),
            ("10 nearest", lambda r: r["answers"]["own10_ms"]),
            ("BM25, 200 best", lambda r: r["answers"]["bm25_ms"]),
        ),
    ),
    (
        "opening, ms",
        (
            ("open to first answer", lambda r: r["opening"]["open_ms"]),
            ("the same bytes read", lambda r: r["opening"]["plain_read_ms"]),
        ),
    ),
    (
        "building, s",
        (
            ("rows and tantivy", lambda r: r["build"]["rows_s"]),
            ("FAISS, training included", lambda r: r["build"]["faiss_s"]),
        ),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--log", type=Path, default=DOCS / "growth.jsonl")
    parser.add_argument("--out", type=Path, default=DOCS / "growth.svg")
    options = parser.parse_args()
    newest = {}
    for line in options.log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        newest[row["windows"]] = row
    sizes = sorted(newest)
    plt.rcParams.update(
        {
            "svg.hashsalt": "growth",
            "svg.fonttype": "none",
            "text.color": GREY,
            "axes.labelcolor": GREY,
            "axes.edgecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "font.size": 9,
        }
    )
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.6), layout="constrained")
    for panel, (title, curves) in zip(axes, PANELS, strict=True):
        for (name, of), colour in zip(curves, COLOURS, strict=False):
            panel.loglog(
                sizes, [of(newest[size]) for size in sizes], "o-", color=colour, label=name
            )
        panel.set_title(title, color=GREY)
        panel.set_xlabel("windows")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.legend(frameon=False, labelcolor=GREY)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.out, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
