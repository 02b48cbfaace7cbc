"""Memory: what is free, what a run took at most, and how freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Dict

import torch

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's mallopt


def gib(size: float) -> str:
    """Return a number of bytes as text, in GiB."""
    return f"{size / 2**30:.2f} GiB"


def keep_freed_memory() -> None:
    """Have glibc keep memory that was freed, instead of giving it back to the kernel and asking again.

    A step's tensors are of the same sizes as those of the step before; given back, each page is cleared and mapped
    anew. (vgg8, a step forward and backward in float32, B = 64, one AMD EPYC with 2 threads: 1.34 times as fast,
    quartiles of 9 interleaved rounds 1.29 and 1.38; resnet8x4 1.14, 1.06 and 1.25; in bfloat16 1.07 and 1.11.) Other
    systems and other allocators are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def available_memory(device: torch.device) -> int:
    """Return how many bytes can still be taken on `device`; on the CPU, within the limit of a container too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def free_disk(folder: Path) -> int:
    """Return how many bytes can still be written to `folder`."""
    return shutil.disk_usage(folder).free


def memory_figures(device: torch.device) -> Dict[str, float]:
    """Return `memory_mib`, what the process holds now, and `peak_memory_mib`, the most it held, in MiB.

    On a GPU what PyTorch holds there; on the CPU the whole process (its worker processes not counted).
    """
    if device.type == "cuda":
        now, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    else:
        # of kibibytes, but on macOS of bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        try:
            now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            now = peak
    return {"memory_mib": round(now / 2**20), "peak_memory_mib": round(peak / 2**20)}
