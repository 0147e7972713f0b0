"""Semantic textual similarity: Spearman correlation with human scores, STS benchmark, test split.

    pip install -e '.[benchmark]'
    python benchmarks/sts.py [--model NAME]

Wants the folder eval/stsb of the evaluation data (RAGEMBED_DATA, or ../shared/data): one JSON object a
line with `split`, `s1`, `s2`, `score` in stsb-{en,de,zh}.jsonl.gz. Texts are encoded without a prompt
and compared by cosine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from datetime import date
from importlib.metadata import version
from pathlib import Path

from scipy.stats import spearmanr

from ragembed import PoolingEncoder
from ragembed.config import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "auto"])
    options = parser.parse_args()
    data = Path(os.environ.get("RAGEMBED_DATA", ROOT.parent / "shared" / "data"))
    encoder = PoolingEncoder.from_pretrained(options.model, dtype=options.dtype)
    print(f"{date.today().isoformat()}, torch {version('torch')}, {options.model}, {options.dtype}")
    for language in ("en", "de", "zh"):
        with gzip.open(data / "eval" / "stsb" / f"stsb-{language}.jsonl.gz", "rt") as lines:
            pairs = [row for row in map(json.loads, lines) if row["split"] == "test"]
        first = encoder.encode((pair["s1"] for pair in pairs), long="mean")
        second = encoder.encode((pair["s2"] for pair in pairs), long="mean")
        found = spearmanr((first * second).sum(axis=1), [pair["score"] for pair in pairs])
        print(f"{language}: {len(pairs)} pairs, Spearman x 100 = {100 * found.statistic:.2f}")


if __name__ == "__main__":
    main()
