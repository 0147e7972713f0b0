"""Writing a checkpoint: the sentence-transformers folder layout, with the family's own names.

The class names in `modules.json` are the older ones, which every release of sentence-transformers
understands. Files are written into a folder beside the target, which takes its name at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ragembed.config import EncoderConfig
from ragembed.encoder.families import FAMILIES, Family, Unsupported
from ragembed.encoder.families.base import State
from ragembed.errors import InvalidInput, StorageError

if TYPE_CHECKING:
    from ragembed.encoder.model import PoolingEncoder

_MODULE = "sentence_transformers.models."
_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_POOLING_NAMES = {"mean_sqrt_len": "mean_sqrt_len_tokens"}
_DENSE_ACTIVATIONS = {
    "tanh": "torch.nn.modules.activation.Tanh",
    "identity": "torch.nn.modules.linear.Identity",
    "gelu": "torch.nn.modules.activation.GELU",
    "relu": "torch.nn.modules.activation.ReLU",
    "silu": "torch.nn.modules.activation.SiLU",
}
_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


def save(encoder: PoolingEncoder, folder: Path) -> None:
    """See `PoolingEncoder.save`."""
    try:
        folder = folder.absolute()
        if folder.exists() and not folder.is_dir():
            raise InvalidInput(f"{folder} is a file; give a new folder")
        if folder.exists() and any(folder.iterdir()):
            raise InvalidInput(f"{folder} is not empty; give a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = folder.parent / f".{folder.name}-{os.getpid()}"
        made.mkdir()
        try:
            _write(encoder, made)
            os.replace(made, folder)  # over an empty folder, or none
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise StorageError(f"{folder} cannot be written: {error}") from error


def _write(encoder: PoolingEncoder, folder: Path) -> None:
    config = encoder.config
    state = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    static = encoder.trunk is None and encoder.layers == 0
    if encoder.trunk is not None:
        encoder.trunk.model.save_pretrained(folder)  # type: ignore[operator, union-attr]
    elif static:
        _check_static(config)
        if config.drop_unknown:
            _model2vec(encoder, folder, state["front_end.token.weight"])
            return
        _tensors(folder, {"embedding.weight": state["front_end.token.weight"]})
    else:
        family, raw = _family(encoder)
        _json(folder / "config.json", raw)
        _tensors(folder, family.dump(state, config))
    _tokenizer(encoder, folder, with_settings=not static)
    modules = [("StaticEmbedding" if static else "Transformer", "")]
    if not static:
        modules.append(("Pooling", "1_Pooling"))
        _json(folder / "1_Pooling" / "config.json", _pooling(config))
        lower_case = encoder.tokenizer.lower_case
        limit = {"max_seq_length": config.max_length, "do_lower_case": lower_case}
        _json(folder / "sentence_bert_config.json", limit)
    for n, layer in enumerate(config.dense):
        path = f"{len(modules)}_Dense"
        modules.append(("Dense", path))
        _json(
            folder / path / "config.json",
            {
                "in_features": layer.inputs,
                "out_features": layer.outputs,
                "bias": layer.bias,
                "activation_function": _DENSE_ACTIVATIONS[layer.activation],
            },
        )
        parts = ("weight", "bias") if layer.bias else ("weight",)
        _tensors(folder / path, {f"linear.{part}": state[f"dense.{n}.{part}"] for part in parts})
    if config.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / modules[-1][1]).mkdir()
    _json(
        folder / "modules.json",
        [
            {"idx": n, "name": str(n), "path": path, "type": _MODULE + kind}
            for n, (kind, path) in enumerate(modules)
        ],
    )
    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""} | encoder.prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    if config.truncate_dim:
        settings["truncate_dim"] = config.truncate_dim
    _json(folder / "config_sentence_transformers.json", settings)


def _check_static(config: EncoderConfig) -> None:
    """A token table and its mean are all that a static checkpoint can hold."""
    due: dict[str, object] = {
        "position": "none",
        "front_norm": False,
        "final_norm": False,
        "specials": False,
        "pooling": ("mean",),
    }
    if config.drop_unknown:  # model2vec's layout has no further modules either
        due |= {"dense": (), "truncate_dim": 0}
    for field, value in due.items():
        if (found := getattr(config, field)) != value:
            raise InvalidInput(f"no static checkpoint has {field} {found!r}; {value!r} is due")


def _model2vec(encoder: PoolingEncoder, folder: Path, table: Tensor) -> None:
    """The layout whose readers leave unknown tokens out."""
    _tensors(folder, {"embeddings": table})
    (folder / "tokenizer.json").write_bytes(encoder.tokenizer.data)
    normalize = encoder.config.normalize
    _json(folder / "config.json", {"model_type": "model2vec", "normalize": normalize})


def _family(encoder: PoolingEncoder) -> tuple[Family, dict[str, Any]]:
    """The family an encoder is written as: the one it came from, else the first that fits."""
    names = [encoder.family] if encoder.family else ["bert", "mpnet", "gpt2"]
    if not encoder.config.specials or encoder.config.drop_unknown:
        raise InvalidInput(
            "a transformer that leaves out tokens cannot be saved: no layout says so"
        )
    reasons = []
    for name in names:
        try:
            raw = FAMILIES[name].raw(encoder.config)
        except Unsupported as why:
            reasons.append(f"{name}: {why}")
            continue
        return FAMILIES[name], raw | {"dtype": "float32"}
    raise InvalidInput(f"no family of checkpoints has this shape ({'; '.join(reasons)})")


def _pooling(config: EncoderConfig) -> dict[str, Any]:
    """The older spelling, a flag a mode; the newer one where the order of modes says more."""
    if list(config.pooling) != [mode for mode in _POOLING_FLAGS if mode in config.pooling]:
        return {
            "embedding_dimension": config.hidden_size,
            "pooling_mode": [_POOLING_NAMES.get(mode, mode) for mode in config.pooling],
            "include_prompt": config.include_prompt,
        }
    return {
        "word_embedding_dimension": config.hidden_size,
        **{flag: mode in config.pooling for mode, flag in _POOLING_FLAGS.items()},
        "include_prompt": config.include_prompt,
    }


def _tokenizer(encoder: PoolingEncoder, folder: Path, *, with_settings: bool) -> None:
    (folder / "tokenizer.json").write_bytes(encoder.tokenizer.data)
    for name, data in encoder.tokenizer_settings.items():
        (folder / name).write_bytes(data)
    if with_settings and "tokenizer_config.json" not in encoder.tokenizer_settings:
        added = json.loads(encoder.tokenizer.data).get("added_tokens") or []
        known = {token["content"] for token in added}
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": encoder.config.max_length,
        }
        if pad := next((token for token in _PAD_TOKENS if token in known), None):
            settings["pad_token"] = pad
        _json(folder / "tokenizer_config.json", settings)


def _tensors(folder: Path, tensors: State) -> None:
    folder.mkdir(exist_ok=True)
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
