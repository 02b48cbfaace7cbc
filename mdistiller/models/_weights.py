"""Load a state dict completely or not at all."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, Dict, Mapping, Optional, Set

import torch
from torch import Tensor, nn

from ..errors import UserError, listed

# attributes of wrappers that hold a model: nn.DataParallel, averaged models, torch.compile, Lightning, distillers
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "student")
COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and of averaged models
MAX_NAMED_KEYS = 3  # in a message

log = logging.getLogger("mdistiller")


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Any], source: str, fresh_classifier: Optional[str] = None
) -> None:
    """Load `state_dict` into `model` completely, or raise.

    Keys may have a prefix of any `WRAPPERS`, such as `module.student.`; entries without the prefix are ignored with a
    note. Counters may be missing, as in checkpoints older than PyTorch 0.4.1, and then start at 0. Counters that the
    model does not have are ignored.

    Args:
        model: the model.
        state_dict: its weights.
        source: the origin of the weights, such as a path, for messages.
        fresh_classifier: name of a linear layer that keeps its initial weights, with a note, if `state_dict` has it for
            another number of classes or not at all.

    Raises:
        UserError: keys are missing or unexpected, shapes differ, or values are not finite numbers. The message names
            the first few keys of each kind.
    """
    expected = model.state_dict()
    state = {str(key): value for key, value in state_dict.items()}
    prefix = _prefix(state, expected, source)
    given = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    given = {key: value for key, value in given.items() if key in expected or not _is_counter(key)}
    if fresh_classifier is not None:
        given = _keep_classifier(given, expected, fresh_classifier, source)
    missing = [key for key in expected if key not in given and not _is_counter(key)]
    unexpected = [key for key in given if key not in expected]
    misshapen = [
        f"{key} {_shape(given[key])} (expected {_shape(value)})"
        for key, value in expected.items()
        if key in given and _shape(given[key]) != _shape(value)
    ]
    unusable = [
        f"{key} {_kind(given[key])}"
        for key, value in expected.items()
        if value.is_floating_point() and isinstance(given.get(key), Tensor) and _kind(given[key]) != "numbers"
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen, "not usable": unusable}
    problems = [f"{kind}: {listed(keys, MAX_NAMED_KEYS)}" for kind, keys in kinds.items() if keys]
    if problems:
        place = f"{source}, below {prefix!r}," if prefix else source
        raise UserError(
            f"the weights in {place} do not fit {type(model).__name__}; {'; '.join(problems)}; "
            "give a checkpoint of this model with as many classes, or name the model that it was saved from"
        )
    beside = [key for key in state if not key.startswith(prefix) and not _is_counter(key)]
    if beside:
        log.info(
            f"note: only the weights with the prefix {prefix!r} are loaded from {source}; ignored:"
            f" {listed(beside, MAX_NAMED_KEYS)}"
        )
    counters = {key: torch.zeros_like(value) for key, value in expected.items() if key not in given}
    complete: Any = OrderedDict({**given, **counters})
    complete._metadata = getattr(expected, "_metadata", {})  # the version of each module's layout
    model.load_state_dict(complete)


def _keep_classifier(
    given: Mapping[str, Any], expected: Mapping[str, Tensor], name: str, source: str
) -> Dict[str, Any]:
    """Return `given` with the initial weights of the layer `name` if the number of its outputs differs."""
    own = {key: value for key, value in expected.items() if key.rpartition(".")[0] == name}
    weight = given.get(f"{name}.weight")
    num_outputs = len(own[f"{name}.weight"])
    if isinstance(weight, Tensor) and weight.dim() and len(weight) == num_outputs:
        return dict(given)
    had = f"has {len(weight)} outputs" if isinstance(weight, Tensor) and weight.dim() else "is missing"
    log.info(f"note: the classifier {name} {had} in {source}; the student starts with a new one of {num_outputs}")
    return {**{key: value for key, value in given.items() if key.rpartition(".")[0] != name}, **own}


def _prefix(state: Mapping[str, Any], expected: Mapping[str, Tensor], source: str) -> str:
    """Return the prefix of `WRAPPERS` that the most expected keys have."""
    prefixes: Set[str] = {""}
    for key in state:
        prefix = ""
        for part in key.split("."):
            if part not in WRAPPERS:
                break
            prefix += f"{part}."
            prefixes.add(prefix)
    layers = [key for key in expected if not _is_counter(key)]
    found = {prefix: sum(prefix + key in state for key in layers) for prefix in prefixes}
    fitting = sorted(prefix for prefix in prefixes if found[prefix] == len(layers))
    if len(fitting) > 1:
        raise UserError(
            f"{source} holds several models that fit, below {', '.join(map(repr, fitting))}; save the weights of one of"
            ' them in a file of its own: torch.save({"model": state_dict}, file)'
        )
    # on a tie prefer the prefix that more keys have, then the longer one: it is not part of the layers' names
    return max(prefixes, key=lambda p: (found[p], sum(key.startswith(p) for key in state), len(p)))


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _kind(value: Tensor) -> str:
    """Return the kind of values in a tensor: "numbers" if it can be loaded as a weight, in any float precision."""
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return "sparse, quantized or without values"
    if not value.is_floating_point():
        return "complex" if value.is_complex() else "whole numbers"
    return "numbers" if value.isfinite().all() else "NaN or infinite"
