"""Architectures that are not built here: `transformers.AutoModel` under the same head.

The model's code is that of the installed transformers library; code inside a checkpoint is never
run, and an architecture that the library does not know is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING
from transformers.utils import logging as transformers_logging

from ragembed.config import EncoderConfig
from ragembed.encoder.layout import read_object
from ragembed.errors import ModelError

_ATTENTION = (None, "eager", "sdpa")  # other values can name code to be fetched
_BLOCK = re.compile(r"(^|\.)(layers?|blocks?|h)\.\d+\.")  # a weight inside a block


class ForeignTrunk(nn.Module):
    """(B, L) ids -> (B, L, D) token vectors, through a model of transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = torch.float32

    def forward(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(ids) if real is None else real.long()
        with torch.autocast(
            ids.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32
        ):
            out = self.model(input_ids=ids, attention_mask=mask)
        tokens: Tensor = out.last_hidden_state.float()
        return tokens


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars; ours are drawn on a terminal only."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _unused_places(model: nn.Module) -> int:
    """Rows of the position table that no place uses: RoBERTa and its kin count from the pad id on."""
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return int(part.padding_idx) + 1
    return 0


def load_foreign(folder: Path) -> tuple[ForeignTrunk, EncoderConfig]:
    """A checkpoint of any architecture that transformers knows, from a local folder.

    Raises:
        ModelError: transformers does not know the architecture, or cannot load it.
    """
    raw = read_object(folder / "config.json")
    kind = str(raw.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{folder} holds a {kind!r} model, which neither ragembed nor the installed "
            "transformers knows; code inside a checkpoint is never run"
        )
    asked = (raw.get("attn_implementation"), raw.get("_attn_implementation"))
    if "quantization_config" in raw or any(kind not in _ATTENTION for kind in asked):
        raise ModelError(
            f"{folder} asks for quantised weights or an attention kernel of its own, which are not "
            "loaded; take a plain version of the model"
        )
    try:
        # False, not left out: left out, transformers asks on the terminal, and takes what is piped
        # into the program for an answer.
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Of a model that translates or summarises, the encoder alone gives vectors.
        encodes = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
        auto = AutoModelForTextEncoding if encodes else AutoModel
        with _no_bars():
            model, report = auto.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # a config.json can make transformers raise nearly anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers cannot load the {kind!r} model of {folder}: {first}"
        ) from None
    # transformers fills in what is missing with random numbers, which nobody would notice.
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensors, such as {missing[0]}"
        )
    unused = [name for name in report["unexpected_keys"] if _BLOCK.search(name)]
    if unused := sorted(name for name in unused if not name.startswith("decoder.")):
        raise ModelError(
            f"{len(unused)} weights in {folder} have no place in the model, such as {unused[0]}"
        )
    size = int(config.hidden_size)
    length = int(getattr(config, "max_position_embeddings", 0) or 0) - _unused_places(model)
    shape = EncoderConfig(
        vocabulary_size=int(config.vocab_size),
        hidden_size=size,
        layers=int(getattr(config, "num_hidden_layers", 0)),
        heads=1,
        intermediate_size=size,
        positions=length if length > 2 else 1_000_000,
        max_length=length if length > 2 else 1_000_000,
        position="none",
        front_norm=False,
        pad_id=int(getattr(config, "pad_token_id", 0) or 0),
    )
    return ForeignTrunk(model.float()), shape
