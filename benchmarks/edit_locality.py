"""How far an edit reaches: windows that are new after one line is inserted into a 1 MB file.

    python benchmarks/edit_locality.py [--trials 40] [--data DIR]

Prose from SQuAD's training paragraphs, laid out in six ways; one line of prose goes in at a random
line (or blank) of the middle half. A window is new when no window of the file before the edit had its
text: only such windows are encoded.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from ragembed.chunking import chunk
from ragembed.config import DEFAULT_MODEL, ChunkingConfig
from ragembed.encoder.checkpoint import resolve
from ragembed.readers import parse_blocks
from ragembed.tokenizer import HuggingFaceTokenizer
from ragembed.types import Document, Passage

SIZE = 1_000_000


def wrapped(paragraph: str) -> str:
    """A paragraph in lines of 79 characters."""
    return "\n".join(textwrap.wrap(paragraph, 79))


LAYOUTS: dict[str, Callable[[list[str]], str]] = {
    "blank lines between paragraphs": "\n\n".join,
    "no blank lines": "\n".join,
    "wrapped, blank lines": lambda paragraphs: "\n\n".join(map(wrapped, paragraphs)),
    "wrapped, no blank lines": lambda paragraphs: "\n".join(map(wrapped, paragraphs)),
    "one line": " ".join,
    "no punctuation": lambda paragraphs: re.sub(r"[^\w\s]", "", "\n".join(paragraphs)),
}


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", default=os.environ.get("RAGEMBED_DATA", "../shared/data"))
    options = parser.parse_args()
    tokenizer = HuggingFaceTokenizer.from_file(resolve(DEFAULT_MODEL).folder / "tokenizer.json")
    rng = random.Random(options.seed)
    with gzip.open(Path(options.data, "train/squad-train/corpus.jsonl.gz"), "rt") as file:
        paragraphs = [json.loads(line)["text"] for line in file]

    def passages(text: str) -> tuple[Passage, ...]:
        document = Document(id="file", text=text, blocks=parse_blocks(text, "text"))
        return chunk(document, tokenizer, ChunkingConfig())

    print(f"{time.strftime('%Y-%m-%d')}, {options.trials} insertions each, seed {options.seed}\n")
    print("| layout | passages | tokens a passage | windows | new, mean | new, most |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, layout in LAYOUTS.items():
        rng.shuffle(paragraphs)
        count = next(n for n in range(len(paragraphs)) if sum(map(len, paragraphs[:n])) > SIZE)
        text = layout(paragraphs[:count])
        cut = passages(text)
        before = {window.text for passage in cut for window in passage.windows}
        blanks = [m.end() for m in re.finditer("\n" if text.count("\n") > 100 else " ", text)]
        new = []
        for _ in range(options.trials):
            at = rng.choice(blanks[len(blanks) // 4 : 3 * len(blanks) // 4])
            line = textwrap.shorten(rng.choice(paragraphs), 90, placeholder=".") + "\n"
            after = passages(text[:at] + line + text[at:])
            new.append(sum(w.text not in before for p in after for w in p.windows))
        print(
            f"| {name} | {len(cut)} | {sum(p.tokens for p in cut) / len(cut):.0f} "
            f"| {sum(len(p.windows) for p in cut)} | {sum(new) / len(new):.1f} | {max(new)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
