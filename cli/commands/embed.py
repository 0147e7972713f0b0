"""`ragembed embed`."""

from __future__ import annotations

import io
import json
import sys
from typing import BinaryIO, cast

import click
import numpy as np

from ragembed.cli.options import Settings, common
from ragembed.config import DType
from ragembed.encoder.checkpoint import DEFAULT_MODEL
from ragembed.encoder.inference import LongText
from ragembed.encoder.model import PoolingEncoder
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
    npy: BinaryIO | None,
    as_json: bool,
) -> int:
    """Print the vectors of texts, one JSON object a line.

    With - (or without TEXT) the lines of stdin are the texts.
    """
    lines = list(texts)
    if not lines or lines == ["-"]:
        stdin = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline=None)
        try:
            lines = [line.rstrip("\n") for line in stdin if line.strip()]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"stdin is not UTF-8 ({error.reason} at byte {error.start})"
            ) from None
    if not lines:
        raise InvalidInput("there is no text to embed")
    encoder = PoolingEncoder.from_pretrained(model, device=device, dtype=cast(DType, dtype))
    encode = encoder.encode_query if as_query else encoder.encode_document
    shown = not (settings.quiet or settings.no_progress)
    vectors = encode(lines, long=cast(LongText, long), progress=shown)
    if npy is not None:
        np.save(npy, vectors, allow_pickle=False)
        return 0
    limit = encoder.config.max_length
    for vector, ids in zip(vectors, encoder.tokenizer.model_inputs(lines), strict=True):
        row = {
            "embedding": [round(float(value), 7) for value in vector],
            "tokens": min(len(ids), limit) if long == "truncate" else len(ids),
            "truncated": long == "truncate" and len(ids) > limit,
        }
        click.echo(json.dumps(row))
    return 0
