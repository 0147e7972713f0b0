"""`ragembed doctor`."""

from __future__ import annotations

import json
import platform
import sqlite3
from importlib.metadata import version

import click
import torch

from ragembed.cli.options import Settings, as_json, common, find_index
from ragembed.cli.text import name, style
from ragembed.config import DEFAULT_MODEL
from ragembed.corpus import Corpus
from ragembed.encoder.device import choose_device, choose_dtype
from ragembed.encoder.linear import can_block
from ragembed.encoder.model import PoolingEncoder
from ragembed.encoder.resources import available_cores, limit_threads
from ragembed.errors import RagembedError
from ragembed.tokenizer import budget_tokenizer

_PACKAGES = ("torch", "tokenizers", "faiss-cpu", "tantivy", "tiktoken", "numpy", "pypdfium2")
# SQLite before this can corrupt a database when two connections write at once; ragembed never does.
_WAL_FIX = (3, 51, 3)


@click.command("doctor", short_help="Check the installation, the model and the machine.")
@as_json
@common
@click.pass_obj
def command(settings: Settings, as_json: bool) -> int:
    """Check the installation, the model and the machine. Exits with 1 when something is wrong."""
    facts: dict[str, str] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "sqlite": sqlite3.sqlite_version,
    }
    facts |= {package: version(package) for package in ("ragembed", *_PACKAGES)}
    device = choose_device("auto")
    facts["device"] = str(device)
    facts["dtype"] = str(choose_dtype("auto", device)).removeprefix("torch.")
    facts["threads"] = f"{limit_threads()} (cores to be had: {available_cores()})"
    facts["products"] = "blocked (oneDNN)" if can_block(torch.float32) else "plain"
    problems = []
    try:
        encoder = PoolingEncoder.from_pretrained(DEFAULT_MODEL)
        encoder.encode(["a sentence"])
        facts["model"] = f"{DEFAULT_MODEL}, {encoder.dimension} dimensions, files as published"
        facts["tokenizer"] = budget_tokenizer().name
    except RagembedError as error:
        problems.append(str(error))
    if sqlite3.sqlite_version_info < (3, 37, 0):
        problems.append(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 is the first that works")
    elif sqlite3.sqlite_version_info < _WAL_FIX:
        facts["sqlite"] += (
            " (has the WAL-reset bug; one writer at a time, as here, is not affected)"
        )
    directory = find_index(settings)
    if directory is not None and directory.is_dir() and any(directory.iterdir()):
        facts["index"] = str(directory)
        try:
            with Corpus(directory, create=False) as corpus:
                found = corpus.status().problems
                problems += [f"{p.where}; {p.remedy}" for p in found if p.kind != "skipped"]
        except RagembedError as error:
            problems.append(str(error))
    if as_json:
        click.echo(json.dumps({"ok": not problems, "facts": facts, "problems": problems}))
        return 1 if problems else 0
    for label, value in facts.items():
        click.echo(f"{style(label.rjust(10), bold=True)}  {name(value)}")
    for problem in problems:
        click.echo(style(f"problem: {name(problem)}", fg="yellow"), err=True)
    return 1 if problems else 0
