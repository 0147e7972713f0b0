"""The `ragembed` command. Commands are loaded when they are run, so that `--help` stays quick."""

from __future__ import annotations

import importlib
import logging
import sys

import click

import ragembed
from ragembed.cli.options import ROOT_HELP, MovedRoot, Settings
from ragembed.cli.text import name
from ragembed.errors import RagembedError

# Name -> module and one line of help; a test compares the lines with the commands' own.
COMMANDS = {
    "index": (
        "ragembed.cli.commands.index",
        "Bring folders or files into the index, or up to date.",
    ),
    "search": ("ragembed.cli.commands.search", "Find the passages that best match a query."),
    "context": (
        "ragembed.cli.commands.context",
        "Print grounding text for a question, with sources.",
    ),
    "embed": ("ragembed.cli.commands.embed", "Print the vectors of texts."),
    "status": (
        "ragembed.cli.commands.status",
        "Show what the index holds and what is wrong with it.",
    ),
    "ls": ("ragembed.cli.commands.ls", "List documents, or say why a file is or is not indexed."),
    "remove": ("ragembed.cli.commands.remove", "Take documents or roots out of the index."),
    "compact": ("ragembed.cli.commands.compact", "Give space back that nothing uses."),
    "reembed": ("ragembed.cli.commands.reembed", "Give the index another model, or go back."),
    "verify": ("ragembed.cli.commands.verify", "Check the index against itself."),
    "repair": (
        "ragembed.cli.commands.repair",
        "Mend a damaged index, or save what is whole of it.",
    ),
    "backup": ("ragembed.cli.commands.backup", "Copy the index, while it is in use."),
    "restore": ("ragembed.cli.commands.restore", "Make an index out of a backup."),
    "export": (
        "ragembed.cli.commands.export",
        "Write documents and vectors as JSON lines and .npy.",
    ),
    "import": ("ragembed.cli.commands.import_", "Read what `ragembed export` wrote."),
    "doctor": (
        "ragembed.cli.commands.doctor",
        "Check the installation, the model and the machine.",
    ),
}
INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list under `--help`, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--index", "directory", metavar="DIR", help="The index directory (or RAGEMBED_INDEX)."
)
@click.option("--root", "moved", metavar="OLD=NEW", multiple=True, type=MovedRoot(), help=ROOT_HELP)
@click.option("--quiet", is_flag=True, help="Print nothing but data and errors.")
@click.option("--no-progress", is_flag=True, help="Draw no progress bars.")
@click.option("--debug", is_flag=True, help="Log what happens, and show tracebacks.")
@click.version_option(ragembed.__version__, prog_name="ragembed")
@click.pass_context
def cli(
    context: click.Context,
    directory: str | None,
    moved: tuple[tuple[str, str], ...],
    quiet: bool,
    no_progress: bool,
    debug: bool,
) -> None:
    """Index folders of documents, search them, and get citable context for a language model.

    Everything runs on this machine. Data goes to stdout, everything else to stderr.
    """
    context.obj = Settings(directory, quiet, no_progress, debug, moved)


def main() -> None:
    """Run the command line and exit with the code that the error or the command gives."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    debug = "--debug" in arguments
    _log(logging.DEBUG if debug else logging.ERROR if "--quiet" in arguments else logging.WARNING)
    try:
        result = cli.main(arguments, prog_name="ragembed", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was committed is kept, run it again to go on", err=True)
        return INTERRUPTED
    except RagembedError as error:
        if debug:
            raise
        click.echo(f"error: {name(str(error))}", err=True)
        return error.exit_code
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {name(where)}{error.strerror or error}", err=True)
        return 5


def _log(level: int) -> None:
    detailed = level == logging.DEBUG
    logging.basicConfig(
        level=level,
        format="%(levelname)s %(name)s: %(message)s" if detailed else "warning: %(message)s",
        stream=sys.stderr,
    )
