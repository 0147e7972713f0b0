"""Indexing real folders end to end: speed beside the encoder's alone, exact spans, exact changes.

    python benchmarks/real_folders.py FOLDER [FOLDER ...]

Each folder is copied to a scratch place and indexed with the defaults. Speed is in tokens the encoder
reads (windows overlap, specials counted), once through `corpus.sync` and once through
`encode_document` on a sample of the same windows, taken right before and right after. Then every hit
of a few hundred queries is compared with its file, a second run has to embed nothing, and an edit, a
rename and a deletion have to show up as exactly that.
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch

import ragembed
from ragembed import PoolingEncoder

SAMPLE = 600  # windows
QUERIES = 200


def encoder_rate(encoder: PoolingEncoder, texts: list[str]) -> float:
    """Tokens a second of the encoder alone."""
    tokens = sum(map(len, encoder.tokenizer.model_inputs(texts)))
    started = time.monotonic()
    encoder.encode_document(texts)
    return tokens / (time.monotonic() - started)


def windows_of(corpus: ragembed.Corpus) -> list[str]:
    """The text of every window in the index."""
    texts: list[str] = []
    for document in corpus.documents():
        source = corpus.store.source_text(document.id)
        texts += [
            source[start:end]
            for start, end in corpus.store.connection.execute(
                "SELECT w.start, w.end FROM window w JOIN passage p ON p.id = w.passage_id "
                "WHERE p.document_id = ?",
                (document.id,),
            )
        ]
    return texts


def wrong_spans(corpus: ragembed.Corpus, queries: list[str]) -> tuple[int, int]:
    """How many hits were looked at, and how many are not their file's text at their span."""
    looked = wrong = 0
    for query in queries:
        for hit in corpus.search(query, k=10, mode="lexical"):
            looked += 1
            with open(Path(hit.root, hit.path), encoding="utf-8-sig", newline="") as file:
                text = file.read()
            lines = (text.count("\n", 0, hit.start) + 1, text.count("\n", 0, hit.end - 1) + 1)
            wrong += text[hit.start : hit.end] != hit.text or lines != hit.lines
    return looked, wrong


def measure(folder: Path) -> None:
    """Print one row."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, folder.name)
        shutil.copytree(folder, copy)
        with ragembed.Corpus(Path(scratch, "index")) as corpus:
            encoder = corpus.embedder()
            if not isinstance(encoder, PoolingEncoder):
                raise SystemExit("this benchmark is about the local encoder")
            warm = [f"window number {n} " * 24 for n in range(SAMPLE // 4)]
            encoder_rate(encoder, warm)
            report = corpus.sync(copy)
            texts = windows_of(corpus)
            sample = random.Random(1).sample(texts, min(SAMPLE, len(texts)))
            alone = sorted(encoder_rate(encoder, sample) for _ in range(3))[1]
            read = sum(map(len, encoder.tokenizer.model_inputs(texts)))
            read = int(
                read * report.embedded / max(1, len(texts))
            )  # equal windows are encoded once
            started = time.monotonic()
            again = corpus.sync(copy)
            second = time.monotonic() - started
            headings = [d.title for d in corpus.documents() if d.title][:QUERIES]
            looked, wrong = wrong_spans(corpus, headings or ["the", "how", "what"])
            files = sorted(path for path in copy.rglob("*") if path.suffix in (".md", ".rst"))
            files[0].write_text(files[0].read_text(encoding="utf-8") + "\n\nOne more line.\n")
            files[1].rename(files[1].with_name("renamed" + files[1].suffix))
            files[2].unlink()
            change = corpus.sync()
            clean = corpus.verify().ok
    rate = read / report.seconds
    print(
        f"| {folder.name} | {report.added} | {report.windows} | {report.seconds:.0f} | {rate:,.0f} "
        f"| {alone:,.0f} | {rate / alone:.2f} | {again.embedded} in {second:.2f} s "
        f"| {wrong} of {looked} | {change.updated}/{change.renamed}/{change.removed}, "
        f"{change.embedded} windows | {'ok' if clean else 'DAMAGED'} |",
        flush=True,
    )


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    print(
        f"ragembed {ragembed.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}\n"
    )
    print(
        "| folder | files | windows | index s | tokens/s | encoder alone | share | second run "
        "| wrong spans | updated/renamed/removed | verify |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|---|--:|---|---|")
    for folder in options.folders:
        measure(folder)


if __name__ == "__main__":
    main()
