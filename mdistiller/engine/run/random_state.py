"""The state of the random number generators of Python, NumPy and PyTorch."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

import numpy as np
import torch

from ... import distributed

KEYS = ("python", "numpy", "torch", "cuda")


def get_random_state(device: torch.device) -> Dict[str, Any]:
    """Return the state of all generators as tensors and plain values, so that it loads with `weights_only=True`."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states() if device.type == "cuda" else [],
    }


def set_random_state(state: Dict[str, Any], device: torch.device) -> None:
    """Restore what `get_random_state` returned.

    Raises:
        ValueError: the state was saved on another number of CUDA devices.
    """
    if device.type == "cuda" and len(state["cuda"]) != len(_cuda_states()):
        raise ValueError(f"it was saved with {len(state['cuda'])} CUDA devices, here are {len(_cuda_states())}")
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        if distributed.get_world_size() > 1:
            torch.cuda.set_rng_state(state["cuda"][0])
        else:
            torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def keep_random_state(device: torch.device) -> Iterator[None]:
    """Restore the state of all generators after a `with` block."""
    state = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def _cuda_states() -> List[torch.Tensor]:
    # Each process of a group has a device of its own and leaves the others' alone.
    return [torch.cuda.get_rng_state()] if distributed.get_world_size() > 1 else torch.cuda.get_rng_state_all()
