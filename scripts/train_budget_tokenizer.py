"""Train the budget tokenizer that ships with ragembed: a byte-level BPE of 32,768 entries.

    python scripts/train_budget_tokenizer.py [DATA] [--out ragembed/ragembed-32k.tiktoken]

DATA is the project's data folder (default: $RAGEMBED_DATA, else ../shared/data beside the
repository). Read are `train/*` and the folders of documents in `folders/*.tar.gz`; nothing of
`eval/`, and of the folders every eighth file is held out for `benchmarks/budget_tokenizer.py`.
The same data gives the same file. Ranks 0 to 255 are the bytes, then the merges in order.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import json
import os
import sys
import tarfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ragembed.byte_pair import PATTERN, parse_ranks
from ragembed.pieces import pieces, well_formed

SIZE = 32_768
# How often each kind of text is counted. General English prose is raised because most merges
# should serve it; a weight of 16 gained 1 % or less there and cost German and Chinese 2 to 4 %.
WEIGHTS = {"prose": 8, "docs": 1, "code": 1, "de": 1, "zh": 1}
FOLDERS = {
    "peps": "code",
    "rust-book": "code",
    "fastapi-en": "code",
    "fastapi-de": "de",
    "fastapi-zh": "zh",
}
PARALLEL = (
    "multi30k/parallel.jsonl.gz",
    "docs-en-de-zh/pairs.jsonl.gz",
    "pydocs-en-zh/pairs.jsonl.gz",
    "tatoeba-en-zh/pairs.jsonl.gz",
)
TLDR = {"en": "code", "de": "de", "zh": "zh"}


def data_folder() -> Path:
    """$RAGEMBED_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("RAGEMBED_DATA", beside))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def held_out(name: str) -> bool:
    """Whether a file of a folder is kept for the benchmark: one in eight, by its name."""
    return zlib.crc32(name.encode()) % 8 == 0


def folder_texts(archive: Path, *, held: bool) -> Iterator[str]:
    """The UTF-8 texts of a tar file, of the held-out part or of the rest."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and held_out(member.name) == held:
                yield file.read().decode("utf-8")


def training_texts(data: Path) -> Iterator[tuple[str, str]]:
    """All (kind, text) of the training data, in a fixed order."""
    train = data / "train"
    for name in ("corpus", "queries"):
        for row in rows(train / "squad-train" / f"{name}.jsonl.gz"):
            yield "prose", row["text"]
    for path in PARALLEL:
        for row in rows(train / path):
            yield from parallel(row)
    for row in rows(train / "tldr" / "pages.jsonl.gz"):
        if row["lang"] in TLDR:
            examples = [line for example in row["examples"] for line in example]
            yield TLDR[row["lang"]], "\n".join([row["summary"], *examples])
    for name, kind in FOLDERS.items():
        for text in folder_texts(data / "folders" / f"{name}.tar.gz", held=False):
            yield kind, text


def parallel(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, text) of the languages of a row that are served; other splits than train give none."""
    for language, kind in {"en": "docs", "de": "de", "zh": "zh"}.items():
        if row.get(language) and row.get("split", "train") == "train":
            yield kind, row[language]


def train(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE over the pre-split pattern."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    bpe = trainers.BpeTrainer(
        vocab_size=SIZE,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
    )
    tokenizer.train_from_iterator(texts, trainer=bpe)
    return tokenizer


def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(rest)}


def to_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """tiktoken's view of the vocabulary: the bytes, then the merged tokens in their order."""
    letters = byte_letters()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(letters[letter] for letter in token) for token, _ in vocabulary]
    merged = [token for token in tokens if len(token) > 1]
    if len(tokens) - len(merged) != 256 or len(set(tokens)) != len(tokens):
        sys.exit("the vocabulary does not hold each of the 256 bytes once; nothing was written")
    return {bytes([byte]): byte for byte in range(256)} | {
        token: 256 + number for number, token in enumerate(merged)
    }


def check(encoding: tiktoken.Encoding, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Exit unless tiktoken gives every text back; the share of texts both encode alike."""
    nasty = ["\x00", "\r\n \t", "<|endoftext|>", "\U0001f469\u200d\U0001f680", "e\u0301", " " * 99]
    nasty.append("".join(chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000))
    for text in texts + nasty:
        if encoding.decode(encoding.encode_ordinary(text)) != text:
            sys.exit(f"{text[:60]!r} does not survive encoding and decoding; nothing was written")
    for byte in range(256):
        if encoding.decode_single_token_bytes(byte) != bytes([byte]):
            sys.exit(f"byte {byte} has no token of its own; nothing was written")
    same = sum(
        encoding.encode_ordinary(text) == to_ids(encoding, tokenizer, text) for text in texts
    )
    return same / len(texts)


def to_ids(encoding: tiktoken.Encoding, tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of the Hugging Face encoding, in tiktoken's numbering."""
    letters = byte_letters()
    return [
        encoding.encode_single_token(bytes(letters[letter] for letter in token))
        for token in tokenizer.encode(text).tokens
    ]


def main() -> None:
    """Train, check, write, and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=data_folder())
    default = Path(__file__).resolve().parents[1] / "ragembed" / "ragembed-32k.tiktoken"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    by_kind: dict[str, list[str]] = defaultdict(list)
    for kind, text in dict.fromkeys(training_texts(options.data)):
        by_kind[kind].extend(piece for _, piece in pieces(well_formed(text)))
    sizes = Counter({kind: sum(map(len, texts)) for kind, texts in by_kind.items()})
    for kind, size in sizes.most_common():
        print(f"{kind}: {len(by_kind[kind]):,} texts, {size:,} characters, x{WEIGHTS[kind]}")
    started = time.perf_counter()
    tokenizer = train(
        text for kind, texts in by_kind.items() for _ in range(WEIGHTS[kind]) for text in texts
    )
    print(f"trained in {time.perf_counter() - started:.1f} s")
    ranks = to_ranks(tokenizer)
    data = b"".join(
        b"%s %d\n" % (base64.b64encode(token), rank)
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    encoding = tiktoken.Encoding(
        "ragembed-32k", pat_str=PATTERN, mergeable_ranks=parse_ranks(data), special_tokens={}
    )
    sample = [text for texts in by_kind.values() for text in texts[:: max(1, len(texts) // 500)]]
    agreement = check(encoding, tokenizer, sample)
    print(f"Hugging Face and tiktoken encode {agreement:.2%} of {len(sample)} texts alike")
    options.out.write_bytes(data)
    print(f"{options.out.name}: {len(ranks):,} tokens, {len(data):,} bytes")
    print(f"sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
