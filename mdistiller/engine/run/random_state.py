"""The state of the random number generators of Python, NumPy and PyTorch."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import numpy as np
import torch

KEYS = ("python", "numpy", "torch", "cuda")


def get_random_state(device: torch.device) -> Dict[str, Any]:
    """Return the state of all generators as tensors and plain values, so that it loads with `weights_only=True`."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if device.type == "cuda" else [],  # a process uses one device
    }


def set_random_state(state: Dict[str, Any], device: torch.device) -> None:
    """Restore what `get_random_state` returned. A state from a CPU leaves a GPU's generator as it is."""
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


@contextmanager
def keep_random_state(device: torch.device) -> Iterator[None]:
    """Restore the state of all generators after a `with` block."""
    state = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
