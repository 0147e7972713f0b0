"""`ragembed reembed`."""

from __future__ import annotations

import json

import click

from ragembed.cli.options import Settings, as_json, common, existing_index
from ragembed.cli.progress import Reporter
from ragembed.cli.text import count, name
from ragembed.config import InferenceConfig
from ragembed.corpus import Corpus
from ragembed.types import to_json


@click.command("reembed", short_help="Give the index another model, or go back.")
@click.option("--model", metavar="NAME", help="Checkpoint: a folder or a model name.")
@click.option("--rollback", is_flag=True, help="Go back to the model before.")
@click.option("--forget", is_flag=True, help="Drop the vectors of all models but the one in use.")
@click.option(
    "--device", default="auto", metavar="NAME", help="auto, cpu, cuda; several: cuda:0,cuda:1"
)
@as_json
@common
@click.pass_obj
def command(
    settings: Settings, model: str | None, rollback: bool, forget: bool, device: str, as_json: bool
) -> int:
    """Give the index another model, or go back to the one before.

    The new vectors are built beside the old ones while searches go on; one commit switches. An
    interrupted run is gone on with by the same command. The old vectors stay for --rollback, until
    --forget or the change after next.
    """
    if (model is not None) + rollback + forget != 1:
        raise click.UsageError("say one of --model NAME, --rollback and --forget")
    directory, empty = existing_index(settings)
    inference = InferenceConfig(device=device)
    with Corpus(directory, create=empty, inference=inference) as corpus:
        if forget:
            dropped = corpus.forget_models()
            said = f"{count(dropped, 'model')} forgotten; `ragembed compact` gives the space back"
            if as_json:
                click.echo(json.dumps({"forgotten": dropped}))
            elif not settings.quiet:
                click.echo(said)
            return 0
        with Reporter(settings, verbose=False) as listener:
            if rollback:
                report = corpus.rollback(listener=listener)
            else:
                report = corpus.reembed(model, listener=listener)
    if as_json:
        click.echo(json.dumps(to_json(report)))
    elif settings.quiet:
        pass
    elif report.model == report.previous and not report.passages:
        click.echo(f"{name(report.model)} answers already")
    else:
        click.echo(
            f"{name(report.model)} answers now, in place of {name(report.previous)}: "
            f"{count(report.passages, 'passage')} read, {count(report.windows, 'window')} "
            f"({report.embedded:,} encoded) in {report.seconds:.1f} s"
        )
    return 0
