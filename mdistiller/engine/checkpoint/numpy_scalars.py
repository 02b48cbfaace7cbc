"""NumPy scalars in checkpoints: older training code left accuracies in that form.

PyTorch's safe reader calls nothing but what it is told to. A scalar is a call of `multiarray.scalar`, in a module that
NumPy 1 and 2 name differently, with a `dtype` that is made and then given its state. In place of NumPy's function
stands one that makes numbers of the kinds below and nothing else.
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

    scalar.__module__, scalar.__qualname__ = module, "scalar"  # the name under which the reader looks it up
    return scalar


def allow_numpy_scalars() -> None:
    """Let `torch.load(weights_only=True)` read NumPy's numbers and truth values, whichever NumPy wrote them."""
    dtypes: List[Any] = [type(np.dtype(kind)) for kind in KINDS]
    # encode: how a pickle of protocol 2 spells bytes; newer PyTorch allows it by itself
    torch.serialization.add_safe_globals([codecs.encode, np.dtype, *dtypes, *map(_scalar_of, MODULES)])
