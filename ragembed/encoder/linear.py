"""Linear maps that run at the speed of the machine and still train.

The weight stays a float32 parameter: it is what is saved and what gradients flow into. For inference
each map derives a second form from it, in the dtype of the products: on a CPU the blocked layout of
oneDNN, with the activation fused into the product; on a GPU a plain copy. On two AMD Zen 5 cores the
blocked layout multiplied float32 2.3 times as fast as torch's default, and bfloat16 1.3 times
(one-off; benchmarks/encoder_speed.py measures the whole).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragembed.config import Activation

logger = logging.getLogger(__name__)

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": nn.Identity(),
}
# What oneDNN calls them: (attribute, algorithm).
_FUSED: dict[Activation, tuple[str, str]] = {
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
    "identity": ("none", ""),
}


class _Prepared(NamedTuple):
    made_from: tuple[object, ...]
    weight: Tensor
    bias: Tensor | None


class Linear(nn.Linear):
    """x -> activation(x W^T + b): (..., inputs) -> (..., outputs).

    Without gradients the result has `compute_dtype`; with gradients everything is in the dtype of
    the weights.

    >>> double = Linear(2, 2, activation="relu")
    >>> with torch.no_grad():
    ...     _ = double.weight.copy_(2 * torch.eye(2)), double.bias.zero_()
    ...     double(torch.tensor([[1.0, -1.0]]))
    tensor([[2., 0.]])
    """

    def __init__(
        self, inputs: int, outputs: int, *, activation: Activation = "identity", bias: bool = True
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.activation: Activation = activation
        self.compute_dtype = torch.float32
        self._prepared: _Prepared | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))
        ready = self._prepare()
        x = x.to(self.compute_dtype)
        if ready.weight.is_mkldnn:
            attribute, algorithm = _FUSED[self.activation]
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, ready.weight, ready.bias, attribute, [], algorithm
            )
            return out
        return ACTIVATIONS[self.activation](F.linear(x, ready.weight, ready.bias))

    def _prepare(self) -> _Prepared:
        """The weights in the form that inference reads, made anew when the parameters changed."""
        parts = [self.weight] if self.bias is None else [self.weight, self.bias]
        made_from = (
            self.compute_dtype,
            *((p.data_ptr(), p.device, 0 if p.is_inference() else p._version) for p in parts),
        )
        # Parameters made in inference mode count no changes, so they are never trusted twice.
        countless = any(p.is_inference() for p in parts)
        if countless or self._prepared is None or self._prepared.made_from != made_from:
            weight = self.weight.detach().to(self.compute_dtype)
            bias = None if self.bias is None else self.bias.detach().to(self.compute_dtype)
            if self.weight.device.type == "cpu" and can_block(self.compute_dtype):
                weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
            self._prepared = _Prepared(made_from, weight, bias)
        return self._prepared

    def train(self, mode: bool = True) -> Linear:
        """As in torch. Changes through `.data` are seen after `train` or `eval` only."""
        self._prepared = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, object]:
        # Blocked weights cannot be copied, and need not be.
        return {**self.__dict__, "_prepared": None}


def set_compute_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """The dtype of all products inside a module; parameters stay as they are."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.compute_dtype = dtype


@cache
def can_block(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's blocked product for a dtype, and it is right.

    The operators belong to torch's compiler and carry no promise for later versions, so they are
    tried on a small product first.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    with torch.inference_mode():
        x, weight = torch.arange(32.0).view(4, 8) / 32, torch.arange(128.0).view(16, 8) / 128 - 0.5
        expected = F.gelu(F.linear(x, weight))
        try:
            blocked = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), None)
            found = torch.ops.mkldnn._linear_pointwise(
                x.to(dtype), blocked, None, "gelu", [], "none"
            )
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            logger.debug("no blocked %s products here: %s", dtype, str(error).splitlines()[0])
            return False
        return bool(torch.allclose(found.float(), expected, atol=0.02))
