"""BERT (MiniLM, BGE, E5, GTE, LEAF) and RoBERTa (XLM-RoBERTa, multilingual E5, BGE-M3).

The two differ in where positions start: RoBERTa's place 0 is row `pad_token_id + 1` of the table.
The rows before it are never looked at, so they are left out here and written as zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ragembed.config import EncoderConfig
from ragembed.encoder.families.base import (
    Family,
    Raw,
    State,
    Unsupported,
    Weights,
    activation,
    activation_name,
    require,
)

Names = tuple[str, ...]
Pairs = tuple[tuple[str, str], ...]

# (ours, theirs) within a block, each with a weight and a bias.
BLOCK: Pairs = (
    ("attention.output", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("mlp.expand", "intermediate.dense"),
    ("mlp.contract", "output.dense"),
    ("mlp_norm", "output.LayerNorm"),
)
QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
PARTS = ("weight", "bias")
_POSITIONS = {"absolute": ("learned", "none"), "relative_key": ("none", "relative_key")}


def shape(raw: Raw) -> dict[str, Any]:
    """Fields of `EncoderConfig` from a BERT `config.json`."""
    position = raw.get("position_embedding_type") or "absolute"
    if position not in _POSITIONS:
        raise Unsupported(f"position_embedding_type {position!r}")
    if raw.get("is_decoder"):
        raise Unsupported("is_decoder")
    return {
        "vocabulary_size": int(raw["vocab_size"]),
        "hidden_size": int(raw["hidden_size"]),
        "layers": int(raw["num_hidden_layers"]),
        "heads": int(raw["num_attention_heads"]),
        "intermediate_size": int(raw["intermediate_size"]),
        "positions": int(raw["max_position_embeddings"]),
        "position": _POSITIONS[position][0],
        "relative": _POSITIONS[position][1],
        "activation": activation(raw.get("hidden_act", "gelu")),
        "layer_norm_eps": float(raw.get("layer_norm_eps", 1e-12)),
        "pad_id": int(raw.get("pad_token_id") or 0),
    }


def roberta_shape(raw: Raw) -> dict[str, Any]:
    """The same for RoBERTa, whose table has rows that no place uses."""
    fields = shape({"pad_token_id": 1, **raw})
    if fields["relative"] != "none":
        raise Unsupported(f"{fields['relative']} positions in RoBERTa")
    fields["positions"] -= fields["pad_id"] + 1
    return fields


def load(weights: Weights, config: EncoderConfig, unused_rows: int = 0) -> State:
    """BERT's names to ours; queries, keys and values become one matrix."""
    tokens = weights.take("embeddings.word_embeddings.weight")
    positions = weights.take("embeddings.position_embeddings.weight")[unused_rows:]
    segment = weights.take("embeddings.token_type_embeddings.weight")[0]  # (D,): see FrontEnd
    state = {
        "front_end.norm.weight": weights.take("embeddings.LayerNorm.weight"),
        "front_end.norm.bias": weights.take("embeddings.LayerNorm.bias"),
    }
    if config.position == "learned":
        state["front_end.token.weight"] = tokens
        state["front_end.position.table.weight"] = positions + segment
    else:
        state["front_end.token.weight"] = tokens + segment
    state |= load_blocks(weights, config.layers, QKV, BLOCK)
    if config.relative == "relative_key":
        for ours, theirs in _distances(config):
            state[ours] = weights.take(theirs)
    weights.finish()
    return state


def roberta_load(weights: Weights, config: EncoderConfig) -> State:
    """The same for RoBERTa."""
    return load(weights, config, unused_rows=config.pad_id + 1)


def load_blocks(weights: Weights, layers: int, qkv: Names, block: Pairs) -> State:
    """All blocks of a BERT-like encoder; queries, keys and values become one matrix."""
    state = {}
    for n in range(layers):
        theirs, ours = f"encoder.layer.{n}", f"transformer.blocks.{n}"
        for part in PARTS:
            state[f"{ours}.attention.qkv.{part}"] = torch.cat(
                [weights.take(f"{theirs}.{name}.{part}") for name in qkv]
            )
            for mine, name in block:
                state[f"{ours}.{mine}.{part}"] = weights.take(f"{theirs}.{name}.{part}")
    return state


def dump_blocks(state: State, layers: int, qkv: Names, block: Pairs) -> State:
    """The way back."""
    tensors = {}
    for n in range(layers):
        theirs, ours = f"encoder.layer.{n}", f"transformer.blocks.{n}"
        for part in PARTS:
            split: tuple[Tensor, ...] = state[f"{ours}.attention.qkv.{part}"].chunk(3)
            for name, tensor in zip(qkv, split, strict=True):
                tensors[f"{theirs}.{name}.{part}"] = tensor
            for mine, name in block:
                tensors[f"{theirs}.{name}.{part}"] = state[f"{ours}.{mine}.{part}"]
    return tensors


def _distances(config: EncoderConfig) -> list[tuple[str, str]]:
    """(ours, theirs) of the relative-key tables."""
    return [
        (
            f"transformer.blocks.{n}.attention.relative_key.table.weight",
            f"encoder.layer.{n}.attention.self.distance_embedding.weight",
        )
        for n in range(config.layers)
    ]


def raw(config: EncoderConfig) -> dict[str, Any]:
    """`config.json` of a BERT of this shape."""
    require(config, causal=False, norm_first=False, front_norm=True, final_norm=False)
    back = {ours: theirs for theirs, ours in _POSITIONS.items()}
    kind = (config.position, config.relative)
    if kind not in back:
        raise Unsupported(f"position {config.position!r} with relative {config.relative!r}")
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.positions,
        "position_embedding_type": back[kind],
        "hidden_act": activation_name(config.activation),
        "layer_norm_eps": config.layer_norm_eps,
        "type_vocab_size": 2,
        "pad_token_id": config.pad_id,
    }


def roberta_raw(config: EncoderConfig) -> dict[str, Any]:
    """`config.json` of an XLM-RoBERTa of this shape."""
    require(config, position="learned", relative="none")
    return raw(config) | {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "max_position_embeddings": config.positions + config.pad_id + 1,
        "type_vocab_size": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def dump(state: State, config: EncoderConfig, unused_rows: int = 0, segments: int = 2) -> State:
    """Our names to BERT's. The segment vectors, folded into other tables, are written as zeros."""
    D = config.hidden_size
    positions = state.get("front_end.position.table.weight", torch.zeros(config.positions, D))
    tensors = {
        "embeddings.word_embeddings.weight": state["front_end.token.weight"],
        "embeddings.position_embeddings.weight": torch.cat(
            [torch.zeros(unused_rows, D), positions]
        ),
        "embeddings.token_type_embeddings.weight": torch.zeros(segments, D),
        "embeddings.LayerNorm.weight": state["front_end.norm.weight"],
        "embeddings.LayerNorm.bias": state["front_end.norm.bias"],
    }
    tensors |= dump_blocks(state, config.layers, QKV, BLOCK)
    if config.relative == "relative_key":
        tensors |= {theirs: state[ours] for ours, theirs in _distances(config)}
    return tensors


def roberta_dump(state: State, config: EncoderConfig) -> State:
    """The same for RoBERTa."""
    return dump(state, config, unused_rows=config.pad_id + 1, segments=1)


BERT = Family("bert", shape, load, raw, dump)
ROBERTA = Family("xlm-roberta", roberta_shape, roberta_load, roberta_raw, roberta_dump)
