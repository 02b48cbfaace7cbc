"""The networks' precision. Losses, FFT and optimizer state stay in float32."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ContextManager, Optional

import torch

from ...errors import UserError
from .memory import keep_freed_memory


def pick_device() -> torch.device:
    """Return the current CUDA device, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_device(device: torch.device) -> None:
    """Set up the process for networks on `device`. Call it once, before the first training step."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # TF32 for convolutions only, which autocast runs in lower precision as well; matrix products, such as SFAKD's
        # Fourier transforms, must keep float32, which is PyTorch's default
        torch.backends.cudnn.allow_tf32 = True
    else:
        keep_freed_memory()


@lru_cache(maxsize=None)
def cpu_has(instructions: str) -> bool:
    """Return whether the processor has some instructions, by Linux's name of them, such as `amx_bf16`."""
    try:
        return instructions in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def cpu_has_fast_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in hardware (AMX or AVX512-BF16)."""
    return cpu_has("amx_bf16") or cpu_has("avx512_bf16")


@dataclass(frozen=True)
class Precision:
    """The networks' precision.

    Attributes:
        device_type: the type of the device, `cuda` or `cpu`.
        dtype: the data type of autocast; `None` for float32 without autocast.
    """

    device_type: str
    dtype: Optional[torch.dtype]

    def autocast(self) -> ContextManager[object]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, self.dtype)

    @property
    def needs_scaler(self) -> bool:
        """Whether the loss must be scaled, because gradients can underflow."""
        return self.dtype is torch.float16

    def __str__(self) -> str:
        return "float32" if self.dtype is None else f"{str(self.dtype).split('.')[-1]} autocast"


def pick_precision(mode: str, device: torch.device) -> Precision:
    """Return the precision for a value of `SOLVER.AMP`.

    Args:
        mode: `off`, `bf16`, `fp16`, or `auto`, which is bfloat16 if the hardware computes it fast, otherwise float32.

    Raises:
        UserError: the mode is unknown, or `device` does not support it.
    """
    fast = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_has_fast_bf16()
    dtypes = {
        "off": None,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "auto": torch.bfloat16 if fast else None,
    }
    if mode not in dtypes:
        raise UserError(f"SOLVER.AMP is {mode!r}; expected one of {', '.join(dtypes)}")
    if mode == "fp16" and device.type != "cuda":
        raise UserError("SOLVER.AMP fp16 needs a CUDA device; on this CPU use auto, bf16 or off")
    return Precision(device.type, dtypes[mode])
