"""`ragembed index`."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import cast, get_args

import click

from ragembed.cli.options import DATABASE, FOLDER, Settings, as_json, common, find_index
from ragembed.cli.progress import Reporter
from ragembed.cli.text import count, name, style
from ragembed.config import (
    ChunkingConfig,
    IndexConfig,
    InferenceConfig,
    ScanConfig,
    VectorPrecision,
)
from ragembed.corpus import Corpus
from ragembed.errors import MassDelete
from ragembed.types import SyncReport, to_json

SKIPPED_UNDER_STRICT = 3
_SHOWN = 20


@click.command("index", short_help="Bring folders or files into the index, or up to date.")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--model", metavar="NAME", help="Checkpoint: a folder or a model name.")
@click.option("--window", type=int, metavar="TOKENS", help="Window length for a new index (128).")
@click.option("--overlap", type=int, metavar="TOKENS", help="Window overlap for a new index (32).")
@click.option(
    "--device", default="auto", metavar="NAME", help="auto, cpu, cuda; several: cuda:0,cuda:1"
)
@click.option("--include", multiple=True, metavar="GLOB", help="Only matching files (repeatable).")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out files (repeatable).")
@click.option("--hidden", is_flag=True, help="Hidden files and folders as well.")
@click.option("--encoding", metavar="NAME", help="Decode all text files with this encoding.")
@click.option("--max-file-size", type=int, metavar="BYTES", help="Skip larger files (50000000).")
@click.option("--strict", is_flag=True, help="Exit with 3 when files were skipped.")
@click.option("--dry-run", is_flag=True, help="Say what would happen and change nothing.")
@click.option("--no-prune", is_flag=True, help="Keep documents whose files are gone.")
@click.option("--allow-mass-delete", is_flag=True, help="Remove even most of a root's documents.")
@click.option(
    "--precision",
    type=click.Choice(get_args(VectorPrecision)),
    help="Of the stored vectors, for a new index (float16).",
)
@click.option(
    "--faiss",
    default="",
    metavar="FACTORY",
    help="A FAISS factory string for a new index, such as HNSW32,SQ8; else chosen by size.",
)
@click.option("--verbose", "-v", is_flag=True, help="Name each document once it is committed.")
@as_json
@common
@click.pass_obj
def command(
    settings: Settings,
    paths: tuple[str, ...],
    model: str | None,
    window: int | None,
    overlap: int | None,
    device: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    hidden: bool,
    encoding: str | None,
    max_file_size: int | None,
    strict: bool,
    dry_run: bool,
    no_prune: bool,
    allow_mass_delete: bool,
    precision: str | None,
    faiss: str,
    verbose: bool,
    as_json: bool,
) -> int:
    """Bring folders or files into the index, or up to date.

    Without PATH, all folders the index knows. Files that were added, changed, renamed or deleted
    show up as exactly that; only new text is encoded. What is committed survives Ctrl-C.
    """
    scan = None
    if include or exclude or hidden or encoding or max_file_size is not None:
        scan = ScanConfig(
            include=include,
            exclude=exclude,
            hidden=hidden,
            encoding=encoding,
            max_file_size=ScanConfig().max_file_size if max_file_size is None else max_file_size,
        )
    chunking = None
    if window is not None or overlap is not None:
        default = ChunkingConfig()
        length = default.window if window is None else window
        chunking = ChunkingConfig(
            window=length,
            overlap=min(default.overlap, length // 2) if overlap is None else overlap,
            passage=max(default.passage, length),
        )
    for path in paths:
        if not Path(path).exists() and not Path(path).is_symlink():
            raise click.UsageError(f"there is no file or folder {name(path)!r}")
    directory = find_index(settings) or Path(FOLDER)
    refused: MassDelete | None = None
    with ExitStack() as stack:
        place = directory
        if dry_run and not (directory / DATABASE).is_file():
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # leaves no trace
        inference = InferenceConfig(device=device)
        corpus = stack.enter_context(
            Corpus(
                place,
                model=model,
                chunking=chunking,
                inference=inference,
                index=IndexConfig(
                    precision=cast(VectorPrecision, precision or "float16"), faiss=faiss
                ),
                roots=settings.roots,
            )
        )
        listener = stack.enter_context(Reporter(settings, verbose=verbose))
        try:
            report = corpus.sync(
                *paths,
                scan=scan,
                prune=not no_prune,
                allow_mass_delete=allow_mass_delete,
                dry_run=dry_run,
                listener=listener,
            )
        except MassDelete as error:
            report, refused = error.report, error
    if as_json:
        click.echo(json.dumps(to_json(report)))
    elif not settings.quiet:
        _print(report, directory, dry_run)
    if refused is not None:
        raise refused
    return SKIPPED_UNDER_STRICT if strict and report.skipped else 0


def _print(report: SyncReport, directory: Path, dry_run: bool) -> None:
    changes = [
        (report.added, "added"),
        (report.updated, "updated"),
        (report.renamed, "renamed"),
        (report.removed, "removed"),
        (report.unchanged, "unchanged"),
    ]
    said = ", ".join(f"{number:,} {what}" for number, what in changes if number) or "no documents"
    click.echo(f"{'would be: ' if dry_run else ''}{style(said, bold=True)}")
    if report.windows:
        click.echo(
            f"{count(report.passages, 'passage')}, {count(report.windows, 'window')} "
            f"({report.embedded:,} {'to encode' if dry_run else 'encoded'}, {report.reused:,} reused), "
            f"{count(report.tokens, 'token')} ({report.unknown:,} unknown, {report.truncated} cut) "
            f"in {report.seconds:.1f} s"
        )
    if report.skipped:
        click.echo(f"{count(len(report.skipped), 'file')} skipped:", err=True)
        for skipped in report.skipped[:_SHOWN]:
            click.echo(f"  {name(skipped.path)}: {skipped.code}, {name(skipped.cause)}", err=True)
        if len(report.skipped) > _SHOWN:
            rest = len(report.skipped) - _SHOWN
            click.echo(f"  and {rest} more; `ragembed ls --skipped` names all", err=True)
    if not dry_run and sys.stdout.isatty():
        click.echo(f"index: {directory}", err=True)
