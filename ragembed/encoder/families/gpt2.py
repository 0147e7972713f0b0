"""GPT-2: causal, LayerNorm first, and linear maps stored the other way round.

GPT-2's `Conv1D` keeps its matrices as (inputs, outputs); ours are (outputs, inputs).
"""

from __future__ import annotations

from typing import Any

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

_LINEAR = (
    ("attention.qkv", "attn.c_attn"),
    ("attention.output", "attn.c_proj"),
    ("mlp.expand", "mlp.c_fc"),
    ("mlp.contract", "mlp.c_proj"),
)
_NORMS = (("attention_norm", "ln_1"), ("mlp_norm", "ln_2"))


def shape(raw: Raw) -> dict[str, Any]:
    """Fields of `EncoderConfig` from a GPT-2 `config.json`."""
    for variant in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if raw.get(variant):
            raise Unsupported(variant)
    if raw.get("scale_attn_weights", True) is not True:
        raise Unsupported("scale_attn_weights false")
    size = int(raw["n_embd"])
    return {
        "vocabulary_size": int(raw["vocab_size"]),
        "hidden_size": size,
        "layers": int(raw["n_layer"]),
        "heads": int(raw["n_head"]),
        "intermediate_size": int(raw.get("n_inner") or 4 * size),
        "positions": int(raw["n_positions"]),
        "position": "learned",
        "causal": True,
        "norm_first": True,
        "front_norm": False,
        "final_norm": True,
        "activation": activation(raw.get("activation_function", "gelu_new")),
        "layer_norm_eps": float(raw.get("layer_norm_epsilon", 1e-5)),
    }


def load(weights: Weights, config: EncoderConfig) -> State:
    """GPT-2's names to ours."""
    state = {
        "front_end.token.weight": weights.take("wte.weight"),
        "front_end.position.table.weight": weights.take("wpe.weight"),
        "transformer.norm.weight": weights.take("ln_f.weight"),
        "transformer.norm.bias": weights.take("ln_f.bias"),
    }
    for n in range(config.layers):
        theirs, ours = f"h.{n}", f"transformer.blocks.{n}"
        for mine, name in _LINEAR:
            state[f"{ours}.{mine}.weight"] = weights.take(f"{theirs}.{name}.weight").T.contiguous()
            state[f"{ours}.{mine}.bias"] = weights.take(f"{theirs}.{name}.bias")
        for mine, name in _NORMS:
            for part in ("weight", "bias"):
                state[f"{ours}.{mine}.{part}"] = weights.take(f"{theirs}.{name}.{part}")
        for mask in ("attn.bias", "attn.masked_bias"):  # the causal mask, stored in old files
            weights.drop(f"{theirs}.{mask}")
    weights.finish()
    return state


def raw(config: EncoderConfig) -> dict[str, Any]:
    """`config.json` of a GPT-2 of this shape."""
    require(config, causal=True, norm_first=True, front_norm=False, final_norm=True)
    require(config, position="learned", relative="none")
    last = config.vocabulary_size - 1  # <|endoftext|> in GPT-2's own vocabulary
    return {
        "architectures": ["GPT2Model"],
        "model_type": "gpt2",
        "vocab_size": config.vocabulary_size,
        "n_embd": config.hidden_size,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.positions,
        "activation_function": activation_name(config.activation),
        "layer_norm_epsilon": config.layer_norm_eps,
        "bos_token_id": last,
        "eos_token_id": last,
    }


def dump(state: State, config: EncoderConfig) -> State:
    """Our names to GPT-2's."""
    tensors = {
        "wte.weight": state["front_end.token.weight"],
        "wpe.weight": state["front_end.position.table.weight"],
        "ln_f.weight": state["transformer.norm.weight"],
        "ln_f.bias": state["transformer.norm.bias"],
    }
    for n in range(config.layers):
        theirs, ours = f"h.{n}", f"transformer.blocks.{n}"
        for mine, name in _LINEAR:
            tensors[f"{theirs}.{name}.weight"] = state[f"{ours}.{mine}.weight"].T.contiguous()
            tensors[f"{theirs}.{name}.bias"] = state[f"{ours}.{mine}.bias"]
        for mine, name in _NORMS:
            for part in ("weight", "bias"):
                tensors[f"{theirs}.{name}.{part}"] = state[f"{ours}.{mine}.{part}"]
    return tensors


GPT2 = Family("gpt2", shape, load, raw, dump)
