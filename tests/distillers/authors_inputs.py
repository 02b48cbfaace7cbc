"""Inputs and float64 arithmetic for the golden values in tests/golden/."""

from __future__ import annotations

import json

import numpy as np
import torch

from tests.conftest import REPO


def golden(name):
    """Return the cases of a file in tests/golden/."""
    return json.loads((REPO / "tests/golden" / name).read_text(encoding="utf-8"))["cases"]


def in_float64(monkeypatch):
    """Let the losses compute in float64; their conversion to float32 would lose digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def rounded(array):
    """Return a NumPy array as a float64 tensor of float32 values; integers keep their type."""
    return torch.from_numpy(array.astype(np.float32)).double() if array.dtype.kind == "f" else torch.from_numpy(array)


def drawn(random, how, shape, scale=1.0, relu=False, low=None, high=None):
    """Sample an array from a NumPy `RandomState`, as the golden file describes."""
    if how == "randint":
        return random.randint(low, high, shape)
    if how == "permutation":
        return random.permutation(high)[: shape[0]]
    values = random.standard_normal(shape)
    if how == "unit_rows":
        return values / np.linalg.norm(values, axis=1, keepdims=True)
    assert how == "normal"
    return np.maximum(values * scale, 0) if relu else values * scale


def inputs_of(case):
    """Return the inputs of a case of authors_losses.json by name, float32; those with a gradient are leaves."""
    random = np.random.RandomState(case["inputs"]["seed"])
    arrays = {}
    for draw in case["inputs"]["draws"]:
        arrays[draw["name"]] = drawn(random, **{key: value for key, value in draw.items() if key != "name"})
    for name, (rows, boost) in case["inputs"].get("right_for_first", {}).items():
        arrays[name][np.arange(rows), arrays["target"][:rows]] += boost
    tensors = {name: rounded(array) for name, array in arrays.items()}
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    for name in case["gradients"]:
        tensors[name].requires_grad_()
    return tensors
