"""The machine and the versions that a run used."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, Dict

import torch
import torchvision

from ... import __version__, distributed
from ...paths import SHIPPED

BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # instructions that multiply bfloat16 matrices


def describe_hardware(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with its cores, used threads and instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    words = set(text.split())
    bf16 = [name for flag, name in BF16_FLAGS.items() if flag in words] or [f"no {' or '.join(BF16_FLAGS.values())}"]
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return ", ".join([model[1] if model else "CPU", cores, *bf16])


def _commit() -> Dict[str, str]:
    """Return the commit of this package's Git checkout, with `-dirty` after it if files were changed, or nothing."""
    if not (SHIPPED / ".git").exists():
        return {}
    command = ["git", "-C", str(SHIPPED), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": answer.stdout.strip()}


def machine(device: torch.device, precision: object) -> Dict[str, Any]:
    """Return `hardware`, `versions`, `precision` and the number of `processes` of this process, for summary.json."""
    return {
        "hardware": describe_hardware(device),
        "versions": versions(),
        "precision": str(precision),
        "processes": distributed.get_world_size(),
    }


def versions() -> Dict[str, str]:
    """Return the versions of this package, Python, PyTorch and torchvision, and the commit of a Git checkout."""
    return {
        "mdistiller": __version__,
        **_commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which checkpoints may not hold
        "torchvision": str(torchvision.__version__),
    }
