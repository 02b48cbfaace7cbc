"""The machine's measured peak rates of arithmetic and memory traffic."""

from __future__ import annotations

import time
from functools import partial
from typing import Callable, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F

NUM_REPEATS = 3  # of each measurement; the best counts


class Peak(NamedTuple):
    """The measured peak rates, per second.

    Attributes:
        flops: floating-point operations of large matrix products or of convolutions, whichever are faster.
        bandwidth: bytes that a copy of a large tensor reads and writes.
    """

    flops: float
    bandwidth: float


def synchronize_device(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Measure the machine's peak rates, in about a second.

    Args:
        device: the device to measure.
        dtype: the data type of the operands. On CUDA, float32 follows PyTorch's current settings for TF32.
    """
    on_gpu = device.type == "cuda"
    with torch.inference_mode():
        kernels = _matrix_products(device, dtype, 8192 if on_gpu else 2048)
        kernels += _convolutions(device, dtype, 1024 if on_gpu else 64)
        flops = max(flops / _best_seconds(run, device) for flops, run in kernels)
        source = torch.zeros(2**27 if on_gpu else 2**25, device=device)  # 512 and 128 MiB, larger than caches
        target = torch.empty_like(source)
        seconds = _best_seconds(lambda: target.copy_(source), device)
    return Peak(flops, 2 * source.numel() * source.element_size() / seconds)


Kernels = List[Tuple[float, Callable[[], object]]]  # number of floating-point operations, function that runs them


def _matrix_products(device: torch.device, dtype: torch.dtype, largest: int) -> Kernels:
    kernels: Kernels = []
    for size in (largest // 2, largest):
        matrix = torch.randn(size, size, device=device).to(dtype)
        kernels.append((2.0 * size**3, partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))))
    return kernels


def _convolutions(device: torch.device, dtype: torch.dtype, batch: int) -> Kernels:
    kernels: Kernels = []
    for channels, side in ((64, 32), (256, 8)):
        image = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
        flops = 2.0 * image.numel() * channels * 9
        kernels.append((flops, partial(F.conv2d, image, weight, padding=1)))
    return kernels


def _best_seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(NUM_REPEATS + 1):  # the first one tunes the kernel and allocates memory
        synchronize_device(device)
        started = time.perf_counter()
        run()
        synchronize_device(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
