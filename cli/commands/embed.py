"""`ragembed embed`."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

import click
import numpy as np

from ragembed.cli.options import Settings, common
from ragembed.config import DEFAULT_MODEL, DType
from ragembed.encoder.inference import LongText
from ragembed.encoder.model import PoolingEncoder
from ragembed.encoder.quantization import Codes, to_binary
from ragembed.errors import InvalidInput


@click.command("embed", short_help="Print the vectors of texts.")
@click.argument("texts", nargs=-1, metavar="[TEXT | -]...")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME")
@click.option("--query", "as_query", is_flag=True, help="With the model's query prompt.")
@click.option(
    "--long",
    type=click.Choice(["error", "truncate", "mean"]),
    default="error",
    show_default=True,
    help="A text beyond the model's window: refuse it, cut it, or average its parts.",
)
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto"
)
@click.option(
    "--truncate-dim", type=int, default=0, metavar="N", help="Keep the first N dimensions only."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "binary"]),
    default="float32",
    show_default=True,
    help="binary: one bit a dimension, eight to a byte.",
)
@click.option("--npy", type=click.File("wb"), metavar="FILE", help="Write a .npy array instead.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines (the default).")
@common
@click.pass_obj
def command(
    settings: Settings,
    texts: tuple[str, ...],
    model: str,
    as_query: bool,
    long: str,
    device: str,
    dtype: str,
    truncate_dim: int,
    precision: str,
    npy: BinaryIO | None,
    as_json: bool,
) -> int:
    """Print the vectors of texts, one JSON object a line.

    With - (or without TEXT) the lines of stdin are the texts.
    """
    given = None if not texts or texts == ("-",) else texts
    encoder = PoolingEncoder.from_pretrained(
        model, device=device, dtype=cast(DType, dtype), truncate_dim=truncate_dim
    )
    prompt = encoder.prompts.get("query" if as_query else "document", "")
    waiting: deque[str] = deque()  # texts whose vectors are not there yet
    blocks = encoder.encode_stream(
        _kept(_stdin() if given is None else given, waiting),
        prompt=prompt,
        long=cast(LongText, long),
        progress=given is not None and not (settings.quiet or settings.no_progress),
    )
    arrays = []
    for block in blocks:
        vectors = to_binary(block) if precision == "binary" else block
        if npy is not None:
            arrays.append(vectors)
            waiting.clear()
            continue
        done = [waiting.popleft() for _ in range(len(block))]
        _print(encoder, vectors, done, prompt, cut=long == "truncate")
    if npy is not None and arrays:
        np.save(npy, np.concatenate(arrays), allow_pickle=False)
    return 0


def _stdin() -> Iterator[str]:
    """The lines of stdin that are not blank."""
    found, read = False, 0
    for line in sys.stdin.buffer if sys.stdin is not None else ():
        try:
            text = line.decode("utf-8-sig" if read == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"stdin is not UTF-8 ({error.reason} at byte {read + error.start})"
            ) from None
        read += len(line)
        if text.strip():
            found = True
            yield text.rstrip("\r\n")
    if not found:
        raise InvalidInput("there is no text to embed")


def _kept(texts: Iterable[str], waiting: deque[str]) -> Iterator[str]:
    """The texts as they are; each is put aside until its vector is there."""
    for text in texts:
        waiting.append(text)
        yield text


def _print(
    encoder: PoolingEncoder, vectors: Codes, texts: list[str], prompt: str, *, cut: bool
) -> None:
    limit = encoder.config.max_length
    for vector, ids in zip(vectors, encoder.model_inputs(texts, prompt=prompt), strict=True):
        row = {
            "embedding": [round(value, 7) for value in vector.tolist()],
            "tokens": min(len(ids), limit) if cut else len(ids),
            "truncated": cut and len(ids) > limit,
        }
        click.echo(json.dumps(row))
