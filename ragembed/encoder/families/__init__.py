"""What each family of checkpoints calls its shape and its weights, in both directions.

A family is four functions: `config.json` -> the fields of `EncoderConfig` and back, and the tensors
of `model.safetensors` -> this project's names and back. `FAMILIES` finds one by `model_type`.
"""

from __future__ import annotations

from ragembed.encoder.families import bert, gpt2, mpnet
from ragembed.encoder.families.base import Family, Unsupported, Weights

FAMILIES: dict[str, Family] = {
    "bert": bert.BERT,
    "roberta": bert.ROBERTA,
    "xlm-roberta": bert.ROBERTA,
    "camembert": bert.ROBERTA,
    "mpnet": mpnet.MPNET,
    "gpt2": gpt2.GPT2,
}

__all__ = ["FAMILIES", "Family", "Unsupported", "Weights"]
