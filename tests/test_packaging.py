"""What is installed: every sub-package, lazily, with imports running one way."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"ragembed": "ragembed", "cli": "ragembed.cli", "index": "ragembed.index"}

# Layers from the bottom up; a module may import from its own layer and from those below it.
LAYERS = [
    {"ragembed", "errors", "types", "progress"},
    {"config"},
    {"tiktoken_cache", "byte_pair", "pieces"},
    {"tokenizer", "readers", "places"},
    {"chunking"},
    {"encoder"},
    {"indexer", "highlight", "changes", "roots", "render", "ranking"},
    {"retriever", "context", "removal", "loader", "reembed"},
    {"sync"},
    {"texts", "status"},
    {"compact"},
    {"corpus"},
    {"training"},
    {"cli", "__main__"},
]
INDEX_MAY_IMPORT = {"errors", "types", "config", "index"}


def import_name(path: Path) -> str:
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [FOLDERS[top], *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def room(module: str) -> str:
    """The part of the architecture a module belongs to: its first name below `ragembed`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "ragembed"


def imported(path: Path) -> set[str]:
    """Modules of ragembed that a file imports at run time, function-level imports included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("ragembed", "ragembed.index", "ragembed.encoder"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] == "ragembed"}


def test_every_sub_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {import_name(path) for path in sources() if path.name == "__init__.py"}
    assert there == set(listed)


def test_imports_run_one_way() -> None:
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in sources():
        module = import_name(path)
        own = room(module)
        for target in imported(path):
            other = room(target)
            if other == own or (other == "index" and own in height and height[own] >= 6):
                continue
            if own == "index":
                allowed = other in INDEX_MAY_IMPORT
            else:
                # A name imported from the package itself (`__version__`, `Corpus`) is the front door.
                allowed = height.get(other, height["cli"] if own == "cli" else 99) <= height[own]
            if not allowed:
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_index_never_meets_torch() -> None:
    for path in sources():
        if path.parts[-2] == "index":
            assert "torch" not in path.read_text(encoding="utf-8").replace("never torch", "")


@pytest.mark.parametrize(
    "code",
    [
        "import ragembed",
        "from ragembed.cli.main import run; run(['--help'])",
        "from ragembed.cli.main import run; run(['index', '--help'])",
        "import ragembed.corpus",
    ],
)
def test_start_up_is_light(code: str, tmp_path: Path) -> None:
    program = (
        f"import sys\n{code}\nimport json\n"
        "print('\\n' + json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(out.stdout.splitlines()[-1]) == []


def test_a_first_query_loads_no_compiler(tmp_path: Path) -> None:
    program = (
        "import sys, ragembed\n"
        "ragembed.PoolingEncoder.from_pretrained(device='cpu').encode_query(['a weevil'])\n"
        "slow = {'torch._dynamo', 'transformers', 'huggingface_hub', 'httpx'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)


def test_help_loads_neither_numpy_nor_faiss(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom ragembed.cli.main import run\nrun(['--help'])\n"
        "assert not {'numpy', 'faiss', 'sqlite3', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)


def test_lexical_search_and_status_load_no_torch(tmp_path: Path) -> None:
    import ragembed

    with ragembed.Corpus(tmp_path / "index") as corpus:
        corpus.add([ragembed.Document(id="a", text="The zyzzyva is a weevil.")])
    program = (
        "import sys, ragembed\n"
        "corpus = ragembed.open('index')\n"
        "assert corpus.search('zyzzyva', mode='lexical')[0].path == 'a'\n"
        "assert corpus.status().documents == 1\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["cli", "index"])
def test_a_second_copy_of_a_sub_package_is_refused(name: str) -> None:
    out = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert out.returncode != 0
    assert f"import ragembed.{name}" in out.stderr


def test_no_pickle_and_no_remote_code() -> None:
    for path in sources():
        text = path.read_text(encoding="utf-8")
        text = text.replace("trust_remote_code=False", "")  # what asks for it not to be run
        for word in ("import pickle", "torch.load", "allow_pickle=True", "trust_remote_code"):
            assert word not in text, f"{path.name} has {word}"


def test_public_names_resolve() -> None:
    import ragembed

    for name in ragembed.__all__:
        assert getattr(ragembed, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        ragembed.no_such_name  # noqa: B018
