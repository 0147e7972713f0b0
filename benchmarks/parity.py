"""Vectors beside sentence-transformers' on the same weights: the table of docs/encoder.md.

    pip install -e '.[test]'
    python benchmarks/parity.py

Every family is a small checkpoint with random weights, made by transformers; MiniLM is the real one.
Prints a Markdown table: largest difference of a component and smallest cosine, both in float32, over
seven texts of several languages and lengths; the vectors are unit vectors.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from ragembed import PoolingEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import checkpoints


def compare(folder: Path, reference: SentenceTransformer) -> tuple[str, float, float]:
    """How the family is run, largest difference, smallest cosine."""
    encoder = PoolingEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    ours = encoder.encode(checkpoints.TEXTS)
    theirs: NDArray[np.float32] = reference.encode(checkpoints.TEXTS, normalize_embeddings=True)
    way = "native" if encoder.trunk is None else "transformers"
    return way, float(np.abs(ours - theirs).max()), float((ours * theirs).sum(axis=1).min())


def main() -> None:
    packages = ("torch", "transformers", "sentence-transformers")
    said = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{date.today().isoformat()}, {said}\n")
    print("| checkpoint | runs | max difference | min cosine |")
    print("|---|---|---|---|")
    minilm = SentenceTransformer(str(checkpoints.minilm()), device="cpu")
    rows = [("all-MiniLM-L6-v2", *compare(checkpoints.minilm(), minilm))]
    for name in checkpoints.FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            reference = checkpoints.write(Path(place), name)
            rows.append((name, *compare(Path(place) / "model", reference)))
    for name, way, difference, cosine in rows:
        print(f"| {name} | {way} | {difference:.1e} | {cosine:.7f} |")
    if min(row[3] for row in rows) < 0.9999:
        sys.exit("a cosine is below 0.9999")


if __name__ == "__main__":
    main()
