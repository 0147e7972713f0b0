"""What a text costs in ragembed's budget tokenizer, beside GPT-2's and cl100k_base.

    python benchmarks/budget_tokenizer.py [DATA]

Prints one markdown table. DATA is the project's data folder (default: $RAGEMBED_DATA, else
../shared/data beside the repository). The corpora of `eval/` were not trained on; of the folders
only the files are counted that `scripts/train_budget_tokenizer.py` holds out. GPT-2 and
cl100k_base are taken from `DATA/tiktoken`, tiktoken's cache; nothing is fetched.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import tarfile
import time
import zlib
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

from ragembed.tiktoken_cache import tiktoken_files
from ragembed.tokenizer import Tokenizer, budget_tokenizer

CORPORA = ("scifact", "nfcorpus", "cranfield", "xquad-en", "xquad-de", "xquad-zh", "cmrc2018")
FOLDERS = ("peps", "rust-book")
PEERS = ("gpt2", "cl100k_base")
REPEATS = 3  # the fastest run counts: the others shared the machine with something


def data_folder() -> Path:
    """$RAGEMBED_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("RAGEMBED_DATA", beside))


def corpus_texts(path: Path) -> Iterator[str]:
    """Title and text of each document of a BEIR corpus."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield f"{row['title']}\n\n{row['text']}" if row.get("title") else row["text"]


def held_out_texts(archive: Path) -> Iterator[str]:
    """The files of a folder that were not trained on (the rule of the training script)."""
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and zlib.crc32(member.name.encode()) % 8 == 0:
                yield file.read().decode("utf-8")


def count(tokenizer: Tokenizer, texts: list[str]) -> tuple[int, float]:
    """Tokens of the texts, and the seconds of the fastest of a few runs."""
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        tokens = sum(tokenizer.count(text) for text in texts)
        best = min(best, time.perf_counter() - started)
    return tokens, best


def is_cached(encoding: str) -> bool:
    """Whether every file of a tiktoken encoding is in its cache."""
    return all(path.is_file() for path in tiktoken_files(encoding).values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=data_folder())
    data: Path = parser.parse_args().data
    os.environ["TIKTOKEN_CACHE_DIR"] = str(data / "tiktoken")
    ours = budget_tokenizer()
    peers = [budget_tokenizer(name) for name in PEERS if is_cached(name)]
    sets = {name: list(corpus_texts(data / "eval" / name / "corpus.jsonl.gz")) for name in CORPORA}
    for name in FOLDERS:
        sets[f"{name}, held out"] = list(held_out_texts(data / "folders" / f"{name}.tar.gz"))
    ratios = "".join(f" ratio to {peer.name} |" for peer in peers)
    print(f"| texts | characters | tokens | characters per token |{ratios} million tokens/s |")
    print("|---|" + "--:|" * (4 + len(peers)))
    for name, texts in sets.items():
        characters = sum(map(len, texts))
        tokens, seconds = count(ours, texts)
        cells = "".join(f" {tokens / count(peer, texts)[0]:.3f} |" for peer in peers)
        print(
            f"| {name} | {characters:,} | {tokens:,} | {characters / tokens:.2f} |{cells} "
            f"{tokens / seconds / 1e6:.1f} |"
        )
    versions = ", ".join(f"{package} {version(package)}" for package in ("ragembed", "tiktoken"))
    print(f"\n{date.today()}, {versions}, Python {platform.python_version()}, one thread")


if __name__ == "__main__":
    main()
