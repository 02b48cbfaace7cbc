"""Memory: what is free, what a run took at most, and how freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from pathlib import Path
from typing import BinaryIO, Dict, Union

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
    free = 1024 * _number("/proc/meminfo", "MemAvailable:") or 2**33  # where no system says so
    groups = Path("/sys/fs/cgroup")  # of a container, version 2, then 1; what it caches of files counts as used there
    for limit, used, cached in (
        (groups / "memory.max", groups / "memory.current", _number(groups / "memory.stat", "inactive_file")),
        (
            groups / "memory/memory.limit_in_bytes",
            groups / "memory/memory.usage_in_bytes",
            _number(groups / "memory/memory.stat", "total_inactive_file"),
        ),
    ):
        if _number(limit):
            free = min(free, _number(limit) - _number(used) + cached)
    return free


def _number(path: Union[str, Path], name: str = "") -> int:
    """Return the number after `name` at a line's start in a file of the system, 0 without one."""
    try:
        found = re.search(rf"^{name}\s*(\d+)", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def free_disk(folder: Path) -> int:
    """Return how many bytes can still be written to `folder`."""
    return shutil.disk_usage(folder).free


def reserve(file: BinaryIO, size: int) -> None:
    """Make an empty file `size` bytes of zeros long; its room on the disk is taken, where the system can do that.

    Raises:
        OSError: there is not enough room. (In a mapped file that finds none later, a write ends the process.)
    """
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def memory_figures(device: torch.device) -> Dict[str, float]:
    """Return `memory_mib`, what the process holds now, and `peak_memory_mib`, the most it held, in MiB.

    On a GPU what PyTorch holds there; on the CPU the whole process, without its worker processes. There the peak counts
    pages of mapped files too, so it rises while a teacher cache in a folder fills; what is held now does not.
    """
    if device.type == "cuda":
        now, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    else:
        peak = 1024 * _number("/proc/self/status", "VmHWM:") or _peak_elsewhere()
        now = 1024 * _number("/proc/self/status", "RssAnon:") or peak
    return {"memory_mib": round(now / 2**20), "peak_memory_mib": round(peak / 2**20)}


def _peak_elsewhere() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    # in kibibytes, but on macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
