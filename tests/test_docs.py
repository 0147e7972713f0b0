"""The documentation says what the program does: links, snippets, commands and options."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import click
import pytest

from ragembed.cli.main import COMMANDS, cli
from ragembed.tiktoken_cache import tiktoken_files

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
RUNNABLE = ["docs/concepts.md", "docs/encoder.md", "docs/python.md", "docs/tokenizer.md"]
# Snippets that need GPT-2's files, which a bare machine lacks: fences marked `python gpt2`.
_GPT2 = re.compile(r"^```python gpt2$.*?^```$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as code hosts make them."""
    titles = [title.lower().replace("`", "") for title in _HEADING.findall(prose(page))]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def section(command: str) -> str:
    """The part of docs/cli.md about a command."""
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return next((part for part in parts if part.startswith(f"ragembed {command}\n")), "")


def loaded(command: str) -> click.Command:
    """A command of the group."""
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return found


def options(command: click.Command) -> list[str]:
    """Every spelling of every option."""
    found = [p for p in command.params if isinstance(p, click.Option)]
    return [name for option in found for name in (*option.opts, *option.secondary_opts)]


def test_there_are_pages() -> None:
    assert len(PAGES) >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_fences_are_closed(page: Path) -> None:
    fences = [line for line in page.read_text(encoding="utf-8").splitlines() if "```" in line]
    assert len(fences) % 2 == 0


def run_snippets(page: Path, text: str) -> None:
    """Run a page's snippets one after the other, names shared."""
    parsed = doctest.DocTestParser().get_doctest(
        text, {"__name__": "page"}, page.name, str(page), 0
    )
    assert parsed.examples
    found = doctest.DocTestRunner().run(parsed)
    assert found.failed == 0


@pytest.mark.parametrize("name", RUNNABLE)
def test_snippets_run(name: str) -> None:
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    # Blank lines in their place, so that a failure names the right line.
    run_snippets(page, _GPT2.sub(lambda fence: "\n" * fence[0].count("\n"), text))


def test_snippets_with_gpt2_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(os.environ.get("RAGEMBED_DATA", ROOT.parent / "shared" / "data")) / "tiktoken"
    if cache.is_dir():
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    if missing := [path for path in tiktoken_files("gpt2").values() if not path.is_file()]:
        pytest.skip(f"tiktoken's cache lacks {missing[0]}")
    page = ROOT / "docs/concepts.md"
    fences = _GPT2.findall(page.read_text(encoding="utf-8"))
    run_snippets(page, "\n".join(fence.replace("```", "") for fence in fences))


def test_only_concepts_needs_gpt2() -> None:
    marked = [page.name for page in PAGES if "```python gpt2" in page.read_text(encoding="utf-8")]
    assert marked == ["concepts.md"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    shared = text.partition("## Options of every command")[2].partition("\n## ")[0]
    assert section(command), f"docs/cli.md has no section on {command}"
    words = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section(command) + shared))
    assert not set(options(loaded(command))) - words


def test_no_option_is_invented() -> None:
    known = {name for command in COMMANDS for name in options(loaded(command))}
    known |= {*options(cli), "--help", "-h", "--version", "--index"}
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert not set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - known


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [command for command in COMMANDS if f"`ragembed {command}`" not in text]


def test_no_command_is_invented() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## ragembed (\S+)$", text, re.MULTILINE)
    assert sections == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_of_the_lazy_list_is_the_commands_own(command: str) -> None:
    assert COMMANDS[command][1] == loaded(command).short_help


def test_every_table_and_column_is_documented() -> None:
    schema = (ROOT / "index/schema.sql").read_text(encoding="utf-8")
    page = (ROOT / "docs/index-format.md").read_text(encoding="utf-8")
    tables = re.findall(r"CREATE TABLE (\w+) \((.*?)\n\)", schema, re.DOTALL)
    assert len(tables) == 13
    for table, body in tables:
        columns = re.findall(r"^  (\w+) (?:TEXT|BLOB|INTEGER)", body, re.MULTILINE)
        row = next(line for line in page.splitlines() if line.startswith(f"| `{table}` |"))
        assert not [column for column in columns if f"`{column}`" not in row]


def test_every_error_is_documented() -> None:
    source = (ROOT / "ragembed/errors.py").read_text(encoding="utf-8")
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert not [
        c for c in re.findall(r"^class (\w+)", source, re.MULTILINE) if f"`{c}`" not in page
    ]
