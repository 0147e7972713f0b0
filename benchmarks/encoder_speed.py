"""Tokens per second beside sentence-transformers' settings on the same weights, in alternation.

    pip install -e . 'sentence-transformers[openvino]'
    python benchmarks/encoder_speed.py [--rounds 5] [--only ours-bf16,st-f32]

Sentences are STS benchmark's (about 15 tokens), chunks are pieces of SciFact of 250 tokens; both come
from the evaluation data (RAGEMBED_DATA, or ../shared/data). Every setting encodes the same texts once a
round, in turn. Prints the best rate of the rounds, the median over the rounds of the ratio to
sentence-transformers' default in the same round, and the smallest cosine to float32 vectors. Other
work on the machine spoils it: run it alone. Settings whose packages are missing are named and left
out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from ragembed import PoolingEncoder
from ragembed.encoder.checkpoint import resolve

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 250
Encode = Callable[[list[str]], NDArray[np.float32]]


def sentences(data: Path, count: int) -> list[str]:
    with gzip.open(data / "eval" / "stsb" / "stsb-en.jsonl.gz", "rt") as lines:
        texts = [text for row in map(json.loads, lines) for text in (row["s1"], row["s2"])]
    random.Random(0).shuffle(texts)
    return texts[:count]


def chunks(data: Path, encoder: PoolingEncoder, count: int) -> list[str]:
    with gzip.open(data / "eval" / "scifact" / "corpus.jsonl.gz", "rt") as lines:
        text = " ".join(
            json.loads(line)["text"] for line, _ in zip(lines, range(600), strict=False)
        )
    starts = encoder.tokenizer.encode([text])[0].offsets[::CHUNK, 0].tolist()
    spans = zip(starts, starts[1:], strict=False)
    return [text[start:end] for start, end in spans][:count]


def settings(folder: Path) -> dict[str, Encode]:
    """What is compared, by name; the first is the one that ratios refer to."""
    from sentence_transformers import SentenceTransformer

    found: dict[str, Encode] = {}
    default = SentenceTransformer(str(folder), device="cpu")
    found["st-f32"] = lambda texts: default.encode(texts)
    half = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    found["st-bf16"] = lambda texts: half.encode(texts)
    try:
        vino = SentenceTransformer(
            str(folder),
            device="cpu",
            backend="openvino",
            model_kwargs={"ov_config": {"INFERENCE_PRECISION_HINT": "bf16"}},
        )
        found["st-openvino-bf16"] = lambda texts: vino.encode(texts)
    except Exception as error:  # whatever is missing, the rest can be compared
        print(f"left out: OpenVINO ({str(error).splitlines()[0]})")
    for name, dtype in (("ours-f32", "float32"), ("ours-bf16", "bfloat16")):
        encoder = PoolingEncoder.from_pretrained(folder, device="cpu", dtype=dtype)  # type: ignore[arg-type]
        found[name] = encoder.encode
    return found


def measure(name: str, texts: list[str], tokens: int, run: dict[str, Encode], rounds: int) -> None:
    print(f"\n{name}: {len(texts)} texts, {tokens:,} tokens\n")
    reference = run["ours-f32"](texts)
    seconds: dict[str, list[float]] = {setting: [] for setting in run}
    cosine: dict[str, float] = {}
    for _ in range(rounds + 1):  # the first round warms up, and gives the cosines
        for setting, encode in run.items():
            begun = time.perf_counter()
            vectors = np.asarray(encode(texts), dtype=np.float32)
            seconds[setting].append(time.perf_counter() - begun)
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            cosine[setting] = float((unit * reference).sum(axis=1).min())
    print("| setting | tokens/s | ratio | min cosine |")
    print("|---|---|---|---|")
    base = seconds["st-f32"][1:]
    for setting, taken in seconds.items():
        ratio = median(b / t for b, t in zip(base, taken[1:], strict=True))
        rate = tokens / min(taken[1:])
        print(f"| {setting} | {rate:,.0f} | {ratio:.2f} | {cosine[setting]:.5f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="settings to run, with commas between")
    options = parser.parse_args()
    data = Path(os.environ.get("RAGEMBED_DATA", ROOT.parent / "shared" / "data"))
    folder = resolve("all-MiniLM-L6-v2").folder
    run = settings(folder)
    if options.only:
        wanted = {"st-f32", "ours-f32", *options.only.split(",")}
        run = {name: encode for name, encode in run.items() if name in wanted}
    print(date.today().isoformat(), f"threads {torch.get_num_threads()}", end="")
    for package in ("torch", "sentence-transformers", "transformers", "openvino"):
        try:
            print(f", {package} {version(package)}", end="")
        except PackageNotFoundError:
            continue
    print()
    encoder = PoolingEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    for name, texts in (
        ("sentences", sentences(data, 2000)),
        ("chunks", chunks(data, encoder, 200)),
    ):
        tokens = sum(map(len, encoder.model_inputs(texts)))
        measure(name, texts, tokens, run, options.rounds)


if __name__ == "__main__":
    main()
