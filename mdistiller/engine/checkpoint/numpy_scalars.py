"""NumPy scalars in checkpoints: older training code saved accuracies as such.

`torch.load(weights_only=True)` calls allow-listed functions only. A NumPy scalar is pickled as a call of
`multiarray.scalar`, whose module NumPy 1 and 2 name differently. A function that makes nothing but numbers of the kinds
below replaces it.
"""

from __future__ import annotations

import codecs
import pickle
from typing import Any, Callable, List

import numpy as np
import torch

MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and 2
KINDS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def _scalar_of(module: str) -> Callable[[Any, Any], Any]:
    def scalar(dtype: Any, data: Any) -> Any:
        if not (isinstance(dtype, np.dtype) and dtype.kind in "biuf" and isinstance(data, bytes)):
            raise pickle.UnpicklingError(f"Unsupported NumPy scalar of {dtype!r}")
        return np.frombuffer(data, dtype, count=1)[0]

    scalar.__module__, scalar.__qualname__ = module, "scalar"  # the name that the unpickler looks up
    return scalar


def allow_numpy_scalars() -> None:
    """Let `torch.load(weights_only=True)` read NumPy numbers and booleans of NumPy 1 and 2."""
    dtypes: List[Any] = [type(np.dtype(kind)) for kind in KINDS]
    # codecs.encode is how pickle protocol 2 stores bytes; newer PyTorch allows it already
    torch.serialization.add_safe_globals([codecs.encode, np.dtype, *dtypes, *map(_scalar_of, MODULES)])
