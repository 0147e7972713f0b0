"""The index at 10,000, 100,000 and 1,000,000 windows: built, opened, asked, filtered.

138,177 of the vectors are MiniLM's of real windows, in a random order, and all queries are real; what
is missing to a million are those vectors with Gaussian noise (cosine to the original 0.8 on average).
Rows go into the index through its own writer; encoding is not part of any figure. Each size is opened
and asked in a process of its own, and everything that is compared runs alternately there. Exact scans
are FAISS's IndexFlatIP (float32) and the scan of half precision that smaller indexes use.

    python benchmarks/growth.py --cache DIR [--sizes 10000,100000,1000000] [--log docs/growth.jsonl]
    python benchmarks/growth.py --table docs/growth.jsonl

`--cache` keeps the encoded vectors; RAGEMBED_DATA (else ../shared/data) has the texts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ragembed.index import schema
from ragembed.index.analysis import query_terms
from ragembed.index.commit import Writer
from ragembed.index.lock import create_index
from ragembed.index.rows import DocumentRow, FileFacts, PassageRow, WindowRow
from ragembed.index.snapshot import Searcher, Snapshot

DIMENSION = 384
WORDS = 66  # of a window, at most
FOLDERS = (
    "awkward-formats",
    "encodings",
    "fastapi-de",
    "fastapi-en",
    "fastapi-zh",
    "peps",
    "rust-book",
)
PLAIN = (".html", ".txt", ".md", ".rst", ".xml", ".csv")
PER_PASSAGE, PER_DOCUMENT = 2, 16  # windows
COSINE = 0.8  # of a noisy copy to its original, on average
SHARES = (0.001, 0.01, 0.1, 0.5)
_DATA = Path(os.environ.get("RAGEMBED_DATA", Path(__file__).parents[2] / "shared" / "data"))


# -- vectors ---------------------------------------------------------------------------------------


def _lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(_DATA / name, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _sources() -> Iterator[str]:
    """Judged sets, command pages and folders of documentation, one text each."""
    for name in ("eval/scifact", "eval/nfcorpus", "eval/cranfield"):
        for row in _lines(f"{name}/corpus.jsonl.gz"):
            yield f"{row.get('title', '')}. {row['text']}"
    for name in ("eval/xquad-en", "train/squad-train"):
        for row in _lines(f"{name}/corpus.jsonl.gz"):
            yield row["text"]
    for row in _lines("train/tldr/pages.jsonl.gz"):
        examples = " ".join(f"{what}: {how}" for what, how in row["examples"])
        yield f"{row['cmd']}: {row['summary']} {examples}"
    for name in FOLDERS:
        yield from _files(name)


def _files(name: str) -> Iterator[str]:
    """The texts of a folder, those that are UTF-8."""
    with tarfile.open(_DATA / "folders" / f"{name}.tar.gz") as archive:
        for member in archive:
            if not member.isfile() or member.size > 2_000_000:
                continue
            if name == "awkward-formats" and not member.name.endswith(PLAIN):
                continue
            file = archive.extractfile(member)
            try:
                text = file.read().decode() if file else ""
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                yield text


def real_texts() -> list[str]:
    """Windows of about `WORDS` words, each text once."""
    found: dict[str, None] = {}
    for source in _sources():
        words = source.split()
        if len(words) < 8:
            continue
        count = math.ceil(len(words) / WORDS)
        step = len(words) / count
        for n in range(count):
            found[" ".join(words[round(n * step) : round((n + 1) * step)])[:900]] = None
    return list(found)


def real_queries() -> list[str]:
    """Questions of the judged sets, mixed."""
    names = (
        "eval/scifact",
        "eval/nfcorpus",
        "eval/cranfield",
        "eval/xquad-en",
        "train/squad-train",
    )
    queries = [row["text"] for name in names for row in _lines(f"{name}/queries.jsonl.gz")]
    random.Random(2).shuffle(queries)
    return queries[:2000]


def prepare(cache: Path) -> None:
    """Encode once; about ten minutes on two cores."""
    if (cache / "queries.npy").exists():
        return
    from ragembed import PoolingEncoder

    cache.mkdir(parents=True, exist_ok=True)
    encoder = PoolingEncoder.from_pretrained("all-MiniLM-L6-v2")
    texts, queries = real_texts(), real_queries()
    print(f"encoding {len(texts):,} windows", file=sys.stderr)
    vectors = [
        encoder.encode_document(texts[n : n + 4096], long="mean")
        for n in range(0, len(texts), 4096)
    ]
    np.save(cache / "vectors.npy", np.concatenate(vectors).astype(np.float16))
    (cache / "texts.json").write_text(json.dumps(texts))
    (cache / "queries.json").write_text(json.dumps(queries))
    np.save(cache / "queries.npy", encoder.encode_query(queries))


def vectors_up_to(cache: Path, size: int) -> NDArray[np.float16]:
    """The first `size` vectors (size, d), unit length: real ones first, then noisy copies."""
    real = np.load(cache / "vectors.npy").astype(np.float32)
    real = real[np.random.default_rng(4).permutation(len(real))]
    parts = [real[:size]]
    chance = np.random.default_rng(3)
    # Noise of length t at a right angle gives a cosine of 1 / sqrt(1 + t^2).
    length = math.sqrt(1 / COSINE**2 - 1)
    while sum(map(len, parts)) < size:
        noise = chance.standard_normal(real.shape, dtype=np.float32) * (
            length / math.sqrt(DIMENSION)
        )
        parts.append((real + noise)[: size - sum(map(len, parts))])
    whole = np.concatenate(parts)
    return (whole / np.linalg.norm(whole, axis=1, keepdims=True)).astype(np.float16)


# -- building --------------------------------------------------------------------------------------


def documents(texts: list[str], size: int) -> Iterator[tuple[DocumentRow, list[int]]]:
    """Documents of `PER_DOCUMENT` windows, and the numbers of their vectors."""
    for first in range(0, size, PER_DOCUMENT):
        numbers = list(range(first, min(size, first + PER_DOCUMENT)))
        passages, whole = [], ""
        for begin in range(0, len(numbers), PER_PASSAGE):
            start, windows = len(whole), []
            for number in numbers[begin : begin + PER_PASSAGE]:
                text = texts[number % len(texts)]
                if number >= len(texts):
                    text = f"{text} {number}"  # a copy's text differs as its vector does
                whole += " " if windows else ""
                key = hashlib.sha256(text.encode()).digest()
                windows.append(WindowRow(len(whole), len(whole) + len(text), key))
                whole += text
            body = whole[start:]
            passages.append(
                PassageRow(start, len(whole), (1, 1), None, (), 100, 0, body, tuple(windows))
            )
            whole += "\n"
        facts = FileFacts(hashlib.sha256(whole.encode()).digest(), len(whole))
        yield (
            DocumentRow(
                root_id=None,
                path=f"d{first}".encode(),
                facts=facts,
                format="text",
                encoding="utf-8",
                language="english",
                title="",
                text=whole,
                passages=tuple(passages),
            ),
            numbers,
        )


def build(directory: Path, cache: Path, size: int) -> dict[str, float]:
    """Fill an index; returns seconds: rows with tantivy, then FAISS."""
    vectors = vectors_up_to(cache, size).astype(np.float32)
    texts = json.loads((cache / "texts.json").read_text())
    texts = [texts[n] for n in np.random.default_rng(4).permutation(len(texts))]
    create_index(directory)
    started = time.perf_counter()
    with Writer(directory) as writer:
        with writer.transaction() as transaction:
            model = transaction.put_model("all-MiniLM-L6-v2", "growth", DIMENSION)
            transaction.use_model(model)
        batch: list[tuple[DocumentRow, list[int]]] = []

        def commit() -> None:
            numbers = [n for _, own in batch for n in own]
            keys = [w.key for row, _ in batch for p in row.passages for w in p.windows]
            with writer.transaction() as transaction:
                ids = transaction.put_vectors(model, keys, vectors[numbers])
                for row, _ in batch:
                    transaction.put_document(row, model, ids)
            batch.clear()

        for item in documents(texts, size):
            batch.append(item)
            if len(batch) == 256:
                commit()
        if batch:
            commit()
        rows = time.perf_counter()
        writer.finish()
        done = time.perf_counter()
    return {"rows_s": rows - started, "faiss_s": done - rows, "close_s": time.perf_counter() - done}


# -- asking ----------------------------------------------------------------------------------------


def median_ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e3, 3)


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def plain_read(files: list[Path]) -> int:
    return sum(len(file.read_bytes()) for file in files)


def opened(directory: Path, query: NDArray[np.float32], terms: list[str]) -> None:
    """Open to first answer: nearest windows, best matches, and their passages."""
    from ragembed.index import lookup

    searcher = Searcher(directory)
    with searcher.snapshot() as now:
        ids = [id for id, _ in now.nearest(query, 10)]
        windows = lookup.windows_of_vectors(now.store, ids)
        matches = [id for id, _ in now.best_matches(terms, 10)]
        assert lookup.passages(now.store, [w.passage_id for w in windows] + matches)
    searcher.close()


def ask(directory: Path, cache: Path, size: int, count: int) -> dict[str, object]:
    """All figures of one size that have to do with reading."""
    queries = np.load(cache / "queries.npy")[:count]
    words = [
        query_terms(text, ["english"])
        for text in json.loads((cache / "queries.json").read_text())[:count]
    ]
    read = [*sorted(directory.glob("vectors-*")), *sorted((directory).glob("lexical-*/*"))]
    rounds = [
        (timed(lambda: plain_read(read)), timed(lambda: opened(directory, queries[0], words[0])))
        for _ in range(9)
    ]
    opening = {
        "bytes_read_mb": round(plain_read(read) / 1e6, 1),
        "plain_read_ms": median_ms([a for a, _ in rounds]),
        "open_ms": median_ms([b for _, b in rounds]),
        "ratio": round(statistics.median(b / a for a, b in rounds), 2),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    searcher = Searcher(directory)
    with searcher.snapshot() as now:
        now.nearest(queries[0], 10)
        memory = resident_mb()
        model = now.model
        assert model is not None
        kind = now.store.checkpoints(model.id)[0].kind
        parts = list(now.store.vectors(model))
        ids = np.concatenate([part for part, _ in parts])
        stored = np.concatenate([part for _, part in parts])
        flat32 = faiss.IndexFlatIP(DIMENSION)
        flat32.add(stored)
        flat16 = faiss.IndexScalarQuantizer(
            DIMENSION, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        flat16.add(stored)
        times: dict[str, list[float]] = {
            name: [] for name in ("own10", "own600", "f32", "f16", "bm25")
        }
        hits10 = hits600 = 0
        for query, terms in zip(queries, words, strict=True):
            q = query[None, :]
            started = time.perf_counter()
            own = now.nearest(query, 10)
            times["own10"].append(time.perf_counter() - started)
            started = time.perf_counter()
            _, exact = flat32.search(q, 600)
            times["f32"].append(time.perf_counter() - started)
            times["f16"].append(timed(lambda q=q: flat16.search(q, 10)))  # type: ignore[misc]
            started = time.perf_counter()
            own600 = now.nearest(query, 600)
            times["own600"].append(time.perf_counter() - started)
            times["bm25"].append(timed(lambda t=terms: now.best_matches(t, 200)))  # type: ignore[misc]
            hits10 += len({id for id, _ in own} & set(ids[exact[0, :10]].tolist()))
            hits600 += len({id for id, _ in own600} & set(ids[exact[0]].tolist()))
        answers: dict[str, object] = {
            "kind": kind,
            "recall@10": round(hits10 / (10 * len(queries)), 4),
            "recall@600": round(hits600 / (min(600, size) * len(queries)), 4),
            **{f"{name}_ms": median_ms(values) for name, values in times.items()},
        }
        answers["of_float32_scan"] = round(
            float(np.median(np.array(times["own10"]) / np.array(times["f32"]))), 4
        )
        answers["of_float16_scan"] = round(
            float(np.median(np.array(times["own10"]) / np.array(times["f16"]))), 4
        )
        filtered = [
            filtered_figures(now, queries[:60], words, share, ids, stored, flat32)
            for share in SHARES
        ]
    searcher.close()
    return {
        "opening": opening,
        "memory_mb": memory,
        "memory_before_mb": round(before / 1024, 1),
        "answers": answers,
        "filtered": filtered,
    }


def filtered_figures(
    snapshot: Snapshot,
    queries: NDArray[np.float32],
    words: list[list[str]],
    share: float,
    ids: NDArray[np.int64],
    stored: NDArray[np.float32],
    flat: object,
) -> dict[str, float]:
    """Queries confined to random documents, against brute force on the subset."""
    every = [document.id for document in snapshot.store.documents()]
    chance = np.random.default_rng(5)
    documents = sorted(
        chance.choice(every, max(1, round(share * len(every))), replace=False).tolist()
    )
    resolve = [timed(lambda: snapshot.vectors_of(documents)) for _ in range(3)]
    allowed = snapshot.vectors_of(documents)
    inside = np.isin(ids, allowed)
    subset, subset_ids = stored[inside], ids[inside]
    hits = total = 0
    times, scans, lexical = [], [], []
    for query, terms in zip(queries, words, strict=False):
        started = time.perf_counter()
        own = snapshot.nearest(query, 10, allowed)
        times.append(time.perf_counter() - started)
        scans.append(timed(lambda q=query: flat.search(q[None, :], 10)))  # type: ignore[misc, attr-defined]
        scores = subset @ query
        best = subset_ids[np.lexsort((subset_ids, -scores))[:10]]
        hits += len({id for id, _ in own} & set(best.tolist()))
        total += len(best)
        lexical.append(timed(lambda t=terms: snapshot.best_matches(t, 200, documents)))  # type: ignore[misc]
    return {
        "share": share,
        "vectors": len(allowed),
        "recall@10": round(hits / total, 4),
        "first_resolve_ms": round(resolve[0] * 1e3, 2),
        "resolve_ms": median_ms(resolve[1:]),
        "nearest_ms": median_ms(times),
        "of_float32_scan": round(float(np.median(np.array(times) / np.array(scans))), 4),
        "bm25_ms": median_ms(lexical),
    }


def resident_mb() -> float:
    """Resident memory of this process; the peak where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    except OSError:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)


def sizes_on_disk(directory: Path) -> dict[str, float]:
    kinds = {"database": "ragembed.db*", "faiss": "vectors-*", "tantivy": "lexical-*/*"}
    return {
        name: round(sum(path.stat().st_size for path in directory.glob(pattern)) / 1e6, 1)
        for name, pattern in kinds.items()
    }


def exponents(rows: list[dict[str, object]]) -> dict[str, float]:
    """The power of n that each figure grows with, by least squares on the logarithms."""
    n = np.log([float(row["windows"]) for row in rows])  # type: ignore[arg-type]
    curves = {
        "build": [row["build"]["rows_s"] + row["build"]["faiss_s"] for row in rows],  # type: ignore[index]
        "disk": [sum(row["disk_mb"].values()) for row in rows],  # type: ignore[attr-defined]
        "open": [row["opening"]["open_ms"] for row in rows],  # type: ignore[index]
        "query": [row["answers"]["own10_ms"] for row in rows],  # type: ignore[index]
        "exact scan": [row["answers"]["f32_ms"] for row in rows],  # type: ignore[index]
    }
    return {
        name: round(float(np.polyfit(n, np.log(values), 1)[0]), 2)
        for name, values in curves.items()
    }


def table(path: Path) -> str:
    """The lines of a log, the newest of each size, as tables for docs/reliability.md."""
    newest = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        newest[row["windows"]] = row
    rows = [newest[size] for size in sorted(newest)]
    lines = ["| | " + " | ".join(f"{row['windows']:,}" for row in rows) + " |"]
    lines.append("|---|" + "--:|" * len(rows))
    figures: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
        ("FAISS index", lambda r: f"`{r['answers']['kind']}`"),
        ("rows and tantivy, s", lambda r: f"{r['build']['rows_s']:,.1f}"),
        ("FAISS, training included, s", lambda r: f"{r['build']['faiss_s']:,.1f}"),
        ("database, MB", lambda r: f"{r['disk_mb']['database']:,.0f}"),
        ("FAISS file, MB", lambda r: f"{r['disk_mb']['faiss']:,.0f}"),
        ("tantivy, MB", lambda r: f"{r['disk_mb']['tantivy']:,.1f}"),
        ("resident after opening, MB", lambda r: f"{r['memory_mb']:,.0f}"),
        ("open to first answer, ms", lambda r: f"{r['opening']['open_ms']:,.0f}"),
        ("the same bytes read, ms", lambda r: f"{r['opening']['plain_read_ms']:,.1f}"),
        ("**ratio**", lambda r: f"**{r['opening']['ratio']:.1f}**"),
        ("recall@10", lambda r: f"{r['answers']['recall@10']:.4f}"),
        ("recall@600", lambda r: f"{r['answers']['recall@600']:.4f}"),
        ("10 nearest, ms", lambda r: f"{r['answers']['own10_ms']:.2f}"),
        ("600 nearest, ms", lambda r: f"{r['answers']['own600_ms']:.2f}"),
        ("exact scan, float32, ms", lambda r: f"{r['answers']['f32_ms']:.1f}"),
        ("exact scan, float16, ms", lambda r: f"{r['answers']['f16_ms']:.1f}"),
        (
            "**10 nearest, of the float32 scan**",
            lambda r: f"**{r['answers']['of_float32_scan']:.3f}**",
        ),
        ("10 nearest, of the float16 scan", lambda r: f"{r['answers']['of_float16_scan']:.3f}"),
        ("BM25, 200 best, ms", lambda r: f"{r['answers']['bm25_ms']:.1f}"),
    ]
    for name, figure in figures:
        lines.append(f"| {name} | " + " | ".join(str(figure(row)) for row in rows) + " |")
    lines += ["", "| windows | share | vectors | recall@10 | ms | of the float32 scan | BM25 ms |"]
    lines.append("|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        for own in row["filtered"]:
            lines.append(
                f"| {row['windows']:,} | {own['share']:.1%} | {own['vectors']:,} "
                f"| {own['recall@10']:.3f} "
                f"| {own['nearest_ms']:.1f} | {own['of_float32_scan']:.2f} | {own['bm25_ms']:.1f} |"
            )
    powers = ", ".join(f"{name} {power:.2f}" for name, power in exponents(rows).items())
    return "\n".join([*lines, "", f"Powers of n, by least squares on logarithms: {powers}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("growth-cache"))
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--log", type=Path, help="append a JSON line for each size")
    parser.add_argument("--table", type=Path, help="print the tables of such a log, and no more")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.ask is not None:
        print(json.dumps(ask(options.ask, options.cache, sizes[0], options.queries)))
        return
    if options.table is not None:
        print(table(options.table))
        return
    prepare(options.cache)
    rows: list[dict[str, object]] = []
    for size in sizes:
        base = Path(tempfile.mkdtemp(prefix="ragembed-growth-", dir=options.cache))
        directory = base / "index"
        row: dict[str, object] = {"windows": size, "build": build(directory, options.cache, size)}
        row["disk_mb"] = sizes_on_disk(directory)
        command = [sys.executable, __file__, "--cache", str(options.cache), "--sizes", str(size)]
        said = subprocess.run(
            [*command, "--queries", str(options.queries), "--ask", str(directory)],
            check=True,
            capture_output=True,
            text=True,
        )
        row.update(json.loads(said.stdout))
        assert schema.exists(directory)
        print(json.dumps(row), flush=True)
        if options.log is not None:
            with options.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
        rows.append(row)
        shutil.rmtree(base)
    if len(rows) > 1:
        print(json.dumps({"exponents": exponents(rows)}))


if __name__ == "__main__":
    main()
