"""Loading a state dict that must fit."""

from __future__ import annotations

from typing import Any, List, Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError

PARALLEL_PREFIX = "module."  # of models saved inside nn.DataParallel
NAMED_KEYS = 3


def load_weights(model: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Load `state_dict` into `model`, all of it or nothing.

    Keys may have the `module.` prefix of `nn.DataParallel`. The counters `num_batches_tracked`, which checkpoints older
    than PyTorch 0.4.1 lack, may be missing and then start at 0.

    Args:
        source: where the weights come from, for the message.

    Raises:
        UserError: keys are missing or unexpected, shapes differ, or values are no finite numbers; the message names
            the first few.
    """
    expected = model.state_dict()
    given = {_own_key(str(key), expected): value for key, value in state_dict.items()}
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    misshapen = [
        f"{key} {_shape(given[key])} (expected {_shape(value)})"
        for key, value in expected.items()
        if key in given and _shape(given[key]) != _shape(value)
    ]
    foreign = [
        f"{key} {_kind(given[key])}"
        for key, value in expected.items()
        if value.is_floating_point() and isinstance(given.get(key), Tensor) and _kind(given[key]) != "numbers"
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen, "not usable": foreign}
    problems = [f"{kind}: {_first_few(keys)}" for kind, keys in kinds.items() if keys]
    if problems:
        raise UserError(
            f"the weights in {source} do not fit {type(model).__name__}; {'; '.join(problems)}; "
            "give a checkpoint of the same model and number of classes, or name the model that it is of"
        )
    model.load_state_dict(given)


def _own_key(key: str, expected: Mapping[str, Tensor]) -> str:
    return key[len(PARALLEL_PREFIX) :] if key.startswith(PARALLEL_PREFIX) and key not in expected else key


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _kind(value: Tensor) -> str:
    """What a tensor's numbers are; half precision is as good as single, whole numbers for weights are not."""
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return "sparse, quantized or without values"
    if not value.is_floating_point():
        return "complex" if value.is_complex() else "whole numbers"
    return "numbers" if value.isfinite().all() else "NaN or infinite"


def _first_few(keys: List[str]) -> str:
    more = len(keys) - NAMED_KEYS
    return ", ".join(keys[:NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")
