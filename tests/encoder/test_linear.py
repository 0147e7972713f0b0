"""Linear maps: the blocked form is the same map, and never an old one."""

from __future__ import annotations

import copy
import io
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from ragembed.config import Activation
from ragembed.encoder import linear
from ragembed.encoder.linear import ACTIVATIONS, Linear, can_block, set_compute_dtype
from ragembed.encoder.masks import padding_mask
from ragembed.encoder.transformer import attend

DTYPES = [torch.float32, torch.bfloat16]
needs_blocks = pytest.mark.skipif(
    not can_block(torch.float32), reason="this build of torch has no oneDNN"
)


def plain(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    return ACTIVATIONS[layer.activation](F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 24), (3, 7, 24), (0, 24)])
def test_inference_is_the_same_map(
    activation: Activation, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = Linear(24, 40, activation=activation)
    set_compute_dtype(layer, dtype)
    x = torch.randn(shape)
    with torch.inference_mode():
        found = layer(x)
        expected = plain(layer, x)
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], 40)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(found.float(), expected, atol=tolerance)


@needs_blocks
def test_the_blocked_form_is_what_runs() -> None:
    layer = Linear(24, 40)
    with torch.inference_mode():
        layer(torch.randn(2, 24))
    assert layer._prepared is not None
    assert layer._prepared.weight.is_mkldnn


def test_without_onednn_it_is_still_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "can_block", lambda dtype: False)
    layer = Linear(24, 40, activation="gelu", bias=False)
    x = torch.randn(2, 24)
    with torch.inference_mode():
        assert torch.allclose(layer(x), plain(layer, x), atol=1e-6)


def test_changed_weights_are_never_answered_with_old_ones() -> None:
    layer = Linear(8, 8)
    x = torch.randn(2, 8)

    def agrees() -> bool:
        with torch.inference_mode():
            return torch.allclose(layer(x), plain(layer, x), atol=1e-5)

    assert agrees()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(x).square().sum().backward()
    optimizer.step()
    assert agrees()
    with torch.no_grad():
        layer.bias.add_(1)
    assert agrees()
    layer.load_state_dict(Linear(8, 8).state_dict())
    assert agrees()
    layer.load_state_dict(Linear(8, 8).state_dict(), assign=True)
    assert agrees()
    layer.weight.data = torch.randn(8, 8)
    assert agrees()


def test_gradients_flow_in_float32_whatever_inference_computes_in() -> None:
    layer = Linear(8, 8, activation="gelu")
    set_compute_dtype(layer, torch.bfloat16)
    x = torch.randn(2, 8)
    out = layer(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, plain(layer, x))
    out.sum().backward()
    assert layer.weight.grad is not None


def test_it_can_be_copied_and_stored_after_use() -> None:
    layer = Linear(8, 8)
    x = torch.randn(2, 8)
    with torch.inference_mode():
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
    torch.save(layer.state_dict(), io.BytesIO())
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_bfloat16_attention_holds_where_powers_leave_the_range(scale: float) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 20, 16)
    q = q * scale  # at 1,000, scores of several hundred: exp overflows and underflows
    halves = [t.to(torch.bfloat16) for t in (q, k, v)]
    bias = padding_mask(torch.tensor([[1] * 20, [1] * 17 + [0] * 3]), torch.bfloat16)
    with torch.inference_mode():
        found = attend(*halves, bias, 17).float()
    q, k, v = (t.float() for t in halves)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.float().clamp(min=-1e30))
    assert torch.isfinite(found).all()
    # bfloat16 rounds a score of 500 by 2: weights may differ, but stay a mean of the values
    assert (found - expected).abs().mean() < (0.02 if scale < 100 else 0.3)


@pytest.mark.parametrize("length", [1, 5, 200])
@pytest.mark.parametrize("kind", ["none", "a text", "a head", "all"])
def test_attention_in_slices_is_attention(length: int, kind: str) -> None:
    torch.manual_seed(0)
    B, H, K = 40, 3, 16
    q, k, v = torch.randn(3, B, H, length, K)
    shapes = {
        "a text": (B, 1, 1, length),
        "a head": (1, H, length, length),
        "all": (B, H, length, length),
    }
    bias = torch.randn(shapes[kind]) if kind in shapes else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with torch.inference_mode():
        assert torch.allclose(attend(q, k, v, bias), expected, atol=1e-5)
