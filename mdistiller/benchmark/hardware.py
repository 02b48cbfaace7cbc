"""What the machine is called, and the most that it does: arithmetic and memory traffic per second."""

from __future__ import annotations

import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Callable, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F

FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # what multiplies bfloat16 matrices
REPEATS = 3  # of each measurement, of which the best counts


class Peak(NamedTuple):
    """What was measured, per second.

    Attributes:
        flops: floating-point operations of large matrix products or convolutions, the faster of them.
        bandwidth: bytes that a copy of a large tensor reads and writes.
    """

    flops: float
    bandwidth: float


def describe_hardware(device: torch.device) -> str:
    """Return the GPU, or the processor with its cores, threads in use and units for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    present = set(text.split())
    units = [name for flag, name in FLAGS.items() if flag in present] or [f"no {' or '.join(FLAGS.values())}"]
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return ", ".join([model[1] if model else "CPU", cores, *units])


def wait_for(device: torch.device) -> None:
    """Return when the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Measure the machine, a second or so, in the number format `dtype` (float32 on CUDA: as PyTorch is set up)."""
    on_gpu = device.type == "cuda"
    with torch.inference_mode():
        work = _products(device, dtype, 8192 if on_gpu else 2048) + _convolutions(device, dtype, 1024 if on_gpu else 64)
        flops = max(flops / _best_seconds(run, device) for flops, run in work)
        source = torch.zeros(2**27 if on_gpu else 2**25, device=device)  # 512 and 128 MiB, larger than caches
        target = torch.empty_like(source)
        seconds = _best_seconds(lambda: target.copy_(source), device)
    return Peak(flops, 2 * source.numel() * source.element_size() / seconds)


Runs = List[Tuple[float, Callable[[], object]]]  # floating-point operations, and what does them


def _products(device: torch.device, dtype: torch.dtype, largest: int) -> Runs:
    runs: Runs = []
    for size in (largest // 2, largest):
        matrix = torch.randn(size, size, device=device).to(dtype)
        runs.append((2.0 * size**3, partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))))
    return runs


def _convolutions(device: torch.device, dtype: torch.dtype, batch: int) -> Runs:
    runs: Runs = []
    for channels, side in ((64, 32), (256, 8)):
        image = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
        flops = 2.0 * image.numel() * channels * 9
        runs.append((flops, partial(F.conv2d, image, weight, padding=1)))
    return runs


def _best_seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 1):  # the first one tunes kernels and touches memory
        wait_for(device)
        started = time.perf_counter()
        run()
        wait_for(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
