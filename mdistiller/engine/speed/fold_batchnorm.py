"""Fold the BatchNorms of a frozen model into its convolutions, and lower the precision of the convolutions."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FOLDING_TOLERANCE = 1e-4  # relative to an output's largest value, in float32

Pair = Tuple[str, str]  # names of a convolution and of the BatchNorm after it


def fold_batchnorm(model: nn.Module, input_size: int, dtype: Optional[torch.dtype] = None) -> Tuple[nn.Module, int]:
    """Return a copy of `model` for evaluation with folded BatchNorms, and the number of BatchNorms folded.

    The copy keeps the model's class, methods, layer names and strides. A fold would change an output if the model also
    uses the convolution's result elsewhere. Such folds are found by comparing outputs for random images, and left out.

    Args:
        model: the model, frozen, with float32 weights.
        input_size: the height and the width of its images, in pixels.
        dtype: the type of the convolutions' weights, for a model that runs under autocast to it; `None` for float32.
    """
    device = next(model.parameters()).device
    model = copy.deepcopy(model).cpu().requires_grad_(False).eval()  # TF32 on a GPU would hide what the folds change
    image = torch.randn(2, 3, input_size, input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = _foldable_pairs(model, image, _tensors(model(image)), _adjacent_pairs(model, image))
        model = _fold(model, pairs)
    if dtype is not None:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # the other layers take little time, and decide the outputs' accuracy
                module.to(dtype)
    return model.to(device), len(pairs)


def _foldable_pairs(model: nn.Module, image: Tensor, expected: List[Tensor], pairs: List[Pair]) -> List[Pair]:
    """Return the pairs whose folds leave the outputs unchanged, found by bisection."""
    outputs = _tensors(_fold(model, pairs)(image))
    if all(_is_close(*tensors) for tensors in zip(outputs, expected)):
        return pairs
    half = len(pairs) // 2
    halves = (pairs[:half], pairs[half:]) if half else ()
    return [pair for part in halves for pair in _foldable_pairs(model, image, expected, part)]


def _adjacent_pairs(model: nn.Module, image: Tensor) -> List[Pair]:
    """Return each convolution with the BatchNorm that takes its result, if both run exactly once."""
    outputs: Dict[int, Tuple[str, Tensor]] = {}  # keeps the tensors alive, so that no id is used twice
    num_runs: Dict[str, int] = {}
    pairs: List[Pair] = []
    hooks = []

    def make_hook(name: str) -> Any:
        def record(module: nn.Module, inputs: Tuple[Tensor, ...], output: Tensor) -> None:
            num_runs[name] = num_runs.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                outputs[id(output)] = (name, output)
            elif inputs and id(inputs[0]) in outputs:
                pairs.append((outputs[id(inputs[0])][0], name))

        return record

    for name, module in model.named_modules():
        if type(module) is nn.Conv2d or (type(module) is nn.BatchNorm2d and module.track_running_stats):
            hooks.append(module.register_forward_hook(make_hook(name)))
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(num_runs[name] == 1 for name in pair)]


def _fold(model: nn.Module, pairs: List[Pair]) -> nn.Module:
    """Return a copy with each pair folded into its convolution, and an identity in place of the BatchNorm."""
    model = copy.deepcopy(model)
    for conv_name, norm_name in pairs:
        conv: Any = model.get_submodule(conv_name)
        norm: Any = model.get_submodule(norm_name)
        for name, module in ((conv_name, fuse_conv_bn_eval(conv, norm)), (norm_name, nn.Identity())):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
    return model


def _tensors(output: Any) -> List[Tensor]:
    """Return all tensors in a model's nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if not isinstance(output, (dict, list, tuple)):
        return []
    entries = output.values() if isinstance(output, dict) else output
    return [tensor for entry in entries for tensor in _tensors(entry)]


def _is_close(output: Tensor, expected: Tensor) -> bool:
    return bool((output - expected).abs().max() <= FOLDING_TOLERANCE * expected.abs().max().clamp_min(1e-6))
