"""Retrieval quality through the Python contract: nDCG@10 per leg, one file a document.

    python benchmarks/retrieval.py [--data DIR] [--dtype bfloat16 float32] [SET ...]

Each document becomes a Markdown file (its title as heading, then its text), the folder is indexed
with the defaults, and every query is asked with `corpus.search`. A document's score is that of its
best hit. Needs `pip install -e '.[benchmark]'` and the evaluation sets (`--data`, RAGEMBED_DATA, or
../shared/data).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import torch
from ir_measures import nDCG

import ragembed
from ragembed.config import InferenceConfig
from ragembed.types import Mode

# Set -> split; SciFact and CMRC 2018 are the ones with a bar.
SETS = {
    "scifact": "test",
    "cmrc2018": "dev",
    "nfcorpus": "test",
    "cranfield": "test",
    "xquad-en": "test",
    "xquad-de": "test",
    "xquad-zh": "test",
}
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid")
HITS = 20  # passages; they hold ten documents with room to spare


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_documents(dataset: Path, folder: Path) -> None:
    """One file a document; the file's name is the document's number, in the corpus's order."""
    for number, row in enumerate(rows(dataset / "corpus.jsonl.gz")):
        title = row.get("title", "").strip()
        text = f"# {title}\n\n{row['text']}" if title else row["text"]
        if text.strip():
            (folder / f"{number}.md").write_text(text, encoding="utf-8")


def evaluate(dataset: Path, split: str, dtype: str, modes: Sequence[Mode]) -> dict[str, float]:
    """nDCG@10 of each leg, and how long indexing and searching took."""
    names = [row["_id"] for row in rows(dataset / "corpus.jsonl.gz")]
    qrels = [
        ir_measures.Qrel(*line.split("\t")[:2], int(line.split("\t")[2]))
        for line in (dataset / f"qrels_{split}.tsv").read_text().splitlines()[1:]
    ]
    judged = {qrel.query_id for qrel in qrels}
    queries = [row for row in rows(dataset / "queries.jsonl.gz") if row["_id"] in judged]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "documents")
        folder.mkdir()
        write_documents(dataset, folder)
        inference = InferenceConfig(dtype=dtype)  # type: ignore[arg-type]
        with ragembed.Corpus(Path(scratch, "index"), inference=inference) as corpus:
            started = time.monotonic()
            report = corpus.sync(folder)
            figures["index s"] = time.monotonic() - started
            figures["passages"] = report.passages
            for mode in modes:
                started = time.monotonic()
                run = [
                    ir_measures.ScoredDoc(query["_id"], names[document], score)
                    for query in queries
                    for document, score in best_documents(corpus, query["text"], mode)
                ]
                figures[f"{mode} ms"] = 1000 * (time.monotonic() - started) / len(queries)
                figures[mode] = ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]
    return figures


def best_documents(corpus: ragembed.Corpus, query: str, mode: Mode) -> list[tuple[int, float]]:
    """(document number, score of its best hit), best first; copies of a text count where they stand."""
    best: dict[int, float] = {}
    for hit in corpus.search(query, k=HITS, mode=mode):
        for path in (hit.path, *(place.path for place in hit.also)):
            best.setdefault(int(Path(path).stem), hit.score)
    return list(best.items())


def figures_of(found: dict[str, float]) -> str:
    """The three legs' cells; a leg that was not asked is empty."""
    return " | ".join(f"{found[mode]:.4f}" if mode in found else "" for mode in MODES)


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sets", nargs="*", default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--data", default=os.environ.get("RAGEMBED_DATA", "../shared/data"))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    options = parser.parse_args()
    print(
        f"ragembed {ragembed.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}; nDCG@10\n"
    )
    print("| set | dtype | dense | lexical | hybrid | passages | index s | hybrid ms a query |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name in options.sets:
        for dtype in options.dtype:
            found = evaluate(Path(options.data, "eval", name), SETS[name], dtype, options.modes)
            print(
                f"| {name} | {dtype} | {figures_of(found)} | {found['passages']:.0f} "
                f"| {found['index s']:.0f} | {found.get('hybrid ms', 0):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
