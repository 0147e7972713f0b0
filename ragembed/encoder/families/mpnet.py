"""MPNet (all-mpnet-base-v2, multi-qa-mpnet): BERT with learned positions and relative buckets."""

from __future__ import annotations

from typing import Any

import torch

from ragembed.config import EncoderConfig
from ragembed.encoder.families import bert
from ragembed.encoder.families.base import (
    Family,
    Raw,
    State,
    Unsupported,
    Weights,
    activation_name,
    require,
)

_BLOCK = (
    ("attention.output", "attention.attn.o"),
    ("attention_norm", "attention.LayerNorm"),
    ("mlp.expand", "intermediate.dense"),
    ("mlp.contract", "output.dense"),
    ("mlp_norm", "output.LayerNorm"),
)
_QKV = ("attention.attn.q", "attention.attn.k", "attention.attn.v")
_UNUSED_ROWS = 2  # place 0 is row 2 of the position table, whatever the pad token
_BUCKETS = 32


def shape(raw: Raw) -> dict[str, Any]:
    """Fields of `EncoderConfig` from an MPNet `config.json`."""
    if raw.get("relative_attention_num_buckets", _BUCKETS) != _BUCKETS:
        raise Unsupported(f"{raw['relative_attention_num_buckets']} relative buckets")
    fields = bert.shape(raw)
    fields["positions"] -= _UNUSED_ROWS
    return fields | {"position": "learned", "relative": "buckets"}


def load(weights: Weights, config: EncoderConfig) -> State:
    """MPNet's names to ours; queries, keys and values become one matrix."""
    positions = weights.take("embeddings.position_embeddings.weight")
    state = {
        "front_end.token.weight": weights.take("embeddings.word_embeddings.weight"),
        "front_end.position.table.weight": positions[_UNUSED_ROWS:],
        "front_end.norm.weight": weights.take("embeddings.LayerNorm.weight"),
        "front_end.norm.bias": weights.take("embeddings.LayerNorm.bias"),
        "transformer.buckets.table.weight": weights.take("encoder.relative_attention_bias.weight"),
    }
    state |= bert.load_blocks(weights, config.layers, _QKV, _BLOCK)
    weights.finish()
    return state


def raw(config: EncoderConfig) -> dict[str, Any]:
    """`config.json` of an MPNet of this shape."""
    require(config, causal=False, norm_first=False, front_norm=True, final_norm=False)
    require(config, position="learned", relative="buckets")
    return {
        "architectures": ["MPNetModel"],
        "model_type": "mpnet",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.positions + _UNUSED_ROWS,
        "hidden_act": activation_name(config.activation),
        "layer_norm_eps": config.layer_norm_eps,
        "relative_attention_num_buckets": _BUCKETS,
        "pad_token_id": config.pad_id,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def dump(state: State, config: EncoderConfig) -> State:
    """Our names to MPNet's."""
    unused = torch.zeros(_UNUSED_ROWS, config.hidden_size)
    positions = state["front_end.position.table.weight"]
    tensors = {
        "embeddings.word_embeddings.weight": state["front_end.token.weight"],
        "embeddings.position_embeddings.weight": torch.cat([unused, positions]),
        "embeddings.LayerNorm.weight": state["front_end.norm.weight"],
        "embeddings.LayerNorm.bias": state["front_end.norm.bias"],
        "encoder.relative_attention_bias.weight": state["transformer.buckets.table.weight"],
    }
    return tensors | bert.dump_blocks(state, config.layers, _QKV, _BLOCK)


MPNET = Family("mpnet", shape, load, raw, dump)
