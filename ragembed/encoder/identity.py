"""When two encoders' vectors can be compared: a fingerprint of all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from ragembed.config import EncoderConfig

# What weights of the same sizes can be run as. These values, which BERT base and MiniLM have, are left
# out, so that their fingerprints are those of earlier versions.
_USUAL = {
    "heads": 12,
    "position": "learned",
    "relative": "none",
    "causal": False,
    "norm_first": False,
    "front_norm": True,
    "final_norm": False,
    "activation": "gelu",
    "layer_norm_eps": 1e-12,
    "specials": True,
    "drop_unknown": False,
    "include_prompt": True,
    "dense": [],
}


class Weights(NamedTuple):
    """A digest of a network's weights, and the state of the parameters it stands for.

    Attributes:
        sha256: of the files the weights were published in, or of the numbers; "" is not yet taken.
        versions: identity and version of each parameter; None stands for what it is put on.
    """

    sha256: str
    versions: tuple[tuple[int, int], ...] | None = None

    def up_to_date(self, network: nn.Module) -> Weights:
        """This digest, or that of the numbers if a parameter was changed or replaced since."""
        versions = tuple(
            (id(p), 0 if p.is_inference() else p._version) for p in network.parameters()
        )
        if self.versions == versions:
            return self
        if self.versions is None and self.sha256:
            return Weights(self.sha256, versions)
        digest = hashlib.sha256()
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return Weights(digest.hexdigest(), versions)


def fingerprint(
    config: EncoderConfig, tokenizer: str, prompts: Mapping[str, str], weights: str
) -> str:
    """SHA-256 over weights, tokenizer, pooling, prompts, normalisation, dimension and shape."""
    parts: dict[str, object] = {
        "weights": weights,
        "tokenizer": tokenizer,
        "pooling": "+".join(config.pooling),
        "prompts": {key: prompts[key] for key in sorted(prompts)},
        "normalize": config.normalize,
        "dimension": config.dimension,
    }
    # What weights of the same sizes can be run as; what BERT base and MiniLM have is left out.
    values = config.to_json()
    if other := {key: values[key] for key, usual in _USUAL.items() if values[key] != usual}:
        parts["shape"] = other
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
