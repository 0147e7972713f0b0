"""The sentence-transformers folder layout, read: which modules a checkpoint has, and their settings.

`modules.json` lists them, each with a folder of its own. The class names have moved between releases
(`sentence_transformers.models.Pooling`, `...sentence_transformer.modules.pooling.Pooling`), so only
the last part of each is looked at; a class from outside that package is code, and is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from ragembed.config import Activation, DenseConfig, Pooling
from ragembed.errors import ModelError

_DENSE_ACTIVATIONS: dict[str, Activation] = {
    "Tanh": "tanh",
    "Identity": "identity",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}
_UNLIMITED = 1_000_000  # tokenizers say "no limit" with absurdly large numbers
# `encode_document` looks for the first of these names, in this order.
_ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A checkpoint's modules.

    Attributes:
        trunk: folder of the transformer's or the static table's files.
        static: whether that is a token table without a transformer.
        pooling: modes, concatenated in the order of `Pooling`.
        include_prompt: whether prompt tokens are pooled.
        dense: settings and folder of each linear map behind the pooling.
        normalize: whether the checkpoint scales its vectors to unit length.
        prompts: texts for `query` and `document`, where the checkpoint names some.
        max_length: longest input in tokens, if the checkpoint says.
        lower_case: texts are put into lower case before they are tokenised.
        truncate_dim: keep so many dimensions; 0 keeps all.
        similarity: how the checkpoint wants vectors compared.
    """

    trunk: Path
    static: bool = False
    pooling: tuple[Pooling, ...] = ("mean",)
    include_prompt: bool = True
    dense: tuple[tuple[DenseConfig, Path], ...] = ()
    normalize: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    lower_case: bool = False
    truncate_dim: int = 0
    similarity: str = "cosine"


def read_layout(folder: Path) -> Layout:
    """The modules of a checkpoint; a folder without `modules.json` is a bare transformer.

    Raises:
        ModelError: a file is missing or no JSON, or a module is code or not supported.
    """
    try:
        return _read(folder) if (folder / "modules.json").exists() else _bare(folder)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise ModelError(
            f"the settings in {folder} are not those of a checkpoint "
            f"({type(error).__name__}: {error})"
        ) from None


def _read(folder: Path) -> Layout:
    kinds = _modules(folder)
    names = [kind for kind, _ in kinds]
    if not re.fullmatch(
        "(Transformer,Pooling,|StaticEmbedding,)(Dropout,)?(Dense,(Dropout,)?)*(Normalize,)*",
        "".join(f"{name}," for name in names),
    ):
        raise ModelError(
            f"{folder} consists of {', '.join(names) or 'no modules'}; a Transformer with Pooling, "
            "or a StaticEmbedding, then Dense and Normalize are supported"
        )
    found = dict(kinds)
    static = "StaticEmbedding" in found
    trunk = found["StaticEmbedding" if static else "Transformer"]
    settings = optional_json(folder / "config_sentence_transformers.json")
    if (kind := settings.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise ModelError(f"{folder} is a {kind}; a SentenceTransformer gives one vector a text")
    pooling = {} if static else read_object(found["Pooling"] / "config.json")
    limits = {} if static else _sentence_bert(trunk)
    return Layout(
        trunk=trunk,
        static=static,
        pooling=_pooling(pooling),
        include_prompt=bool(pooling.get("include_prompt", True)),
        dense=tuple((_dense(path), path) for name, path in kinds if name == "Dense"),
        normalize="Normalize" in found,
        prompts=_prompts(settings),
        max_length=None if static else _max_length(trunk, limits),
        lower_case=bool(limits.get("do_lower_case", False)),
        truncate_dim=int(settings.get("truncate_dim") or 0),
        similarity=str(settings.get("similarity_fn_name") or "cosine"),
    )


def _bare(folder: Path) -> Layout:
    """No `modules.json`: a model2vec folder, or a transformer that is mean-pooled."""
    raw = optional_json(folder / "config.json")
    if raw.get("model_type") == "model2vec":
        return Layout(trunk=folder, static=True, normalize=bool(raw.get("normalize", False)))
    return Layout(trunk=folder, max_length=_max_length(folder, {}))


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """(last part of the class name, folder) of each module, in order."""
    found = []
    for module in cast(list[dict[str, Any]], read_json(folder / "modules.json")):
        kind = str(module["type"])
        if not kind.startswith("sentence_transformers."):
            raise ModelError(f"{folder} needs the class {kind}, code from outside; it is not run")
        path = (folder / str(module["path"])).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ModelError(f"{folder} names a module outside its folder: {module['path']}")
        found.append((kind.rpartition(".")[2], folder / str(module["path"])))
    return found


def _sentence_bert(trunk: Path) -> dict[str, Any]:
    """`sentence_bert_config.json`, under whichever of its names it is there."""
    names = sorted(path.name for path in trunk.glob("sentence_*_config.json"))
    return optional_json(trunk / names[0]) if names else {}


def _max_length(trunk: Path, limits: Mapping[str, Any]) -> int | None:
    """Newer checkpoints keep the limit with the tokenizer, older ones in a file of its own."""
    if limits.get("max_seq_length"):
        return int(limits["max_seq_length"])
    limit = optional_json(trunk / "tokenizer_config.json").get("model_max_length")
    return int(limit) if limit and limit < _UNLIMITED else None


def _pooling(config: Mapping[str, Any]) -> tuple[Pooling, ...]:
    """Both spellings of `1_Pooling/config.json`: names, or a flag a mode; mean where neither."""
    modes = config.get("pooling_mode")
    if modes is None:
        flag = re.compile(r"pooling_mode_(\w+?)(?:_tokens?)?$")
        modes = [m[1] for key, on in config.items() if on and (m := flag.fullmatch(key))]
    modes = [modes] if isinstance(modes, str) else list(modes)
    names = [mode.removesuffix("_tokens") for mode in modes] or ["mean"]
    if unknown := sorted(set(names) - set(get_args(Pooling))):
        raise ModelError(
            f"pooling {' + '.join(unknown)} is not supported; one or more of "
            f"{', '.join(get_args(Pooling))} is"
        )
    if config.get("pooling_mode") is None:  # flags have no order of their own
        names.sort(key=get_args(Pooling).index)
    return cast("tuple[Pooling, ...]", tuple(names))


def _dense(folder: Path) -> DenseConfig:
    config = read_object(folder / "config.json")
    if (source := config.get("module_input_name", "sentence_embedding")) != "sentence_embedding":
        raise ModelError(f"{folder} maps {source}, not the pooled vector: not supported")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _DENSE_ACTIVATIONS.get(name.rpartition(".")[2])
    if not name.startswith("torch.nn.") or activation is None:
        raise ModelError(f"{folder} uses the activation {name}, which is not supported")
    if config.get("use_residual"):
        raise ModelError(f"{folder} adds its input to its output (use_residual): not supported")
    return DenseConfig(
        inputs=int(config["in_features"]),
        outputs=int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=activation,
    )


def _prompts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint's texts for `query` and `document`, else its default prompt."""
    named = settings.get("prompts") or {}
    default = named.get(settings.get("default_prompt_name") or "", "")
    found = {}
    for role, names in _ROLES.items():
        given = [named[name] for name in names if name in named]
        text = next(filter(None, given), "" if given else default)
        if text:
            found[role] = str(text)
    return found


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """A JSON file's value; raises `ModelError` when it cannot be read or is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; raises `ModelError` when it cannot be read or is none."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, where an object is due")
    return value


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file."""
    return read_object(path) if path.exists() else {}
