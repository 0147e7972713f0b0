"""What the families share: taking weights by name, and leaving none behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ragembed.config import Activation, EncoderConfig
from ragembed.errors import ModelError

State = dict[str, Tensor]  # names -> tensors, theirs or ours
Raw = Mapping[str, Any]  # a checkpoint's config.json

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_THEIR_ACTIVATIONS: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}


class Unsupported(Exception):
    """A variant of a family that is not built here; transformers may know it."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of checkpoints maps to `EncoderConfig` and to our weights.

    Attributes:
        model_type: what its `config.json` says.
        shape: `config.json` -> fields of `EncoderConfig`; raises `Unsupported`.
        load: the checkpoint's weights, in their names -> ours; takes every one of them.
        raw: `EncoderConfig` -> `config.json`; raises `Unsupported` for what the family cannot say.
        dump: our weights -> theirs.
    """

    model_type: str
    shape: Callable[[Raw], dict[str, Any]]
    load: Callable[[Weights, EncoderConfig], State]
    raw: Callable[[EncoderConfig], dict[str, Any]]
    dump: Callable[[State, EncoderConfig], State]


class Weights:
    """The tensors of a checkpoint, taken one by one; `finish` complains about any that are left."""

    def __init__(
        self, tensors: Mapping[str, Tensor], *, prefix: str, ignored: Iterable[str]
    ) -> None:
        """`prefix` may stand in front of each name; names that contain an `ignored` are heads."""
        skipped = tuple(ignored)
        wanted = {n: t for n, t in tensors.items() if not any(part in n for part in skipped)}
        self._left = {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}
        if len(self._left) < len(wanted):
            raise ModelError(f"the weights have names both with and without {prefix!r}")

    def take(self, name: str) -> Tensor:
        """Remove and return a vector or matrix, as float32.

        Raises:
            ModelError: it is not there, or is nothing of the kind.
        """
        if name not in self._left:
            raise ModelError(f"the weights lack {name}")
        tensor = self._left.pop(name)
        if not tensor.is_floating_point() or not 1 <= tensor.dim() <= 2:
            raise ModelError(f"the weights {name} are {tensor.dtype} of shape {list(tensor.shape)}")
        return tensor.float()

    def drop(self, name: str) -> None:
        """Leave out a tensor that inference does not need, if it is there."""
        self._left.pop(name, None)

    def finish(self) -> None:
        """Raises `ModelError` when some would have been left out."""
        if self._left:
            raise ModelError(
                f"{len(self._left)} weights have no place in the model, such as {min(self._left)}"
            )


def activation(name: str) -> Activation:
    """Our name for a checkpoint's activation; raises `Unsupported`."""
    if name not in _ACTIVATIONS:
        raise Unsupported(f"activation {name!r}")
    return _ACTIVATIONS[name]


def activation_name(ours: Activation) -> str:
    """A checkpoint's name for our activation; raises `Unsupported`."""
    if ours not in _THEIR_ACTIVATIONS:
        raise Unsupported(f"activation {ours!r}")
    return _THEIR_ACTIVATIONS[ours]


def require(config: EncoderConfig, **due: object) -> None:
    """Raise `Unsupported` unless the fields of a configuration have these values."""
    for field, value in due.items():
        if (found := getattr(config, field)) != value:
            raise Unsupported(f"{field} {found!r}")
