"""A re-run on unchanged files beside `os.scandir` + `stat` on the same tree, alternating.

python benchmarks/rescan.py [--files 10000] [--rounds 15]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragembed import Corpus


class Words:
    """Encodes by hashing: this is about files, not about an encoder."""

    name = "words"
    dimension = 64
    fingerprint = "words-1"

    def encode_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "little") for t in texts]
        rows = np.stack([np.random.default_rng(s).standard_normal(64) for s in seeds])
        unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
            "f4"
        )
        return unit

    encode_document = encode_query


def tree(folder: Path, files: int) -> None:
    """Files of a line, a hundred to a folder, written an hour ago."""
    then = time.time() - 3600
    for n in range(files):
        inside = folder / f"part{n // 1000}" / f"section{n // 100}"
        inside.mkdir(parents=True, exist_ok=True)
        file = inside / f"note{n}.txt"
        file.write_text(f"Note {n} says that number {n} is not number {n + 1}.\n")
        os.utime(file, (then, then))


def look(folder: str) -> int:
    """The reference: every folder listed, every file looked at."""
    count = 0
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    os.stat(entry.path, follow_symlinks=False)
                    count += 1
    return count


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ragembed-rescan-") as base:
        folder = Path(base) / "files"
        tree(folder, options.files)
        with Corpus(Path(base) / "index", encoder=Words()) as corpus:
            corpus.sync(folder)
            rows = []
            for _ in range(options.rounds):
                reference = timed(lambda: look(str(folder)))
                own = timed(lambda: corpus.sync(folder))
                rows.append((own, reference))
            assert corpus.sync(folder).unchanged == options.files
    own, reference = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(a / b for a, b in rows)
    print(
        json.dumps(
            {
                "files": options.files,
                "sync_ms": round(own * 1e3, 1),
                "scandir_stat_ms": round(reference * 1e3, 1),
                "ratio": round(ratio, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
