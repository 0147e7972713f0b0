"""Where the encoder runs and in which precision."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

from ragembed.config import DType
from ragembed.errors import InvalidInput


def choose_device(name: str) -> torch.device:
    """The device to run on; "auto" is CUDA where there is one.

    Raises:
        InvalidInput: torch does not know the device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "meta":
            raise NotImplementedError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        first = str(error).splitlines()[0]
        raise InvalidInput(f"device {name!r} cannot be used ({first}); try cpu") from None
    return device


def choose_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products; "auto" is bfloat16 where the device computes in it.

    Raises:
        InvalidInput: no such dtype, or float16 on a CPU, which has no fast float16 products.
    """
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise InvalidInput(f"dtype {name!r} is not one of auto, {', '.join(dtypes)}")
    if name == "float16" and device.type == "cpu":
        raise InvalidInput("float16 is for GPUs; on a CPU use auto, bfloat16 or float32")
    return dtypes[name]


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; emulated, it is slower than float32."""
    if platform.system() != "Linux":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))
