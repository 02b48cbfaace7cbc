"""A frozen model in the form in which it runs fastest: BatchNorm folded into convolutions, fewer bits a weight."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FOLDING_TOLERANCE = 1e-4  # of an output's largest value, float32

Pair = Tuple[str, str]  # names of a convolution and a BatchNorm


def inference_form(model: nn.Module, input_size: int, dtype: Optional[torch.dtype] = None) -> Tuple[nn.Module, int]:
    """Return a copy of `model` for evaluation alone, and how many BatchNorms were folded into convolutions of it.

    The copy has the class, the methods, the layers' names and the strides of the model. A fold that would change an
    output, because the convolution's result is used a second time, is found by comparing outputs for random images, and
    left out.

    Args:
        model: frozen; its weights float32.
        input_size: side of its images, pixels.
        dtype: of the convolutions' weights, for a model that runs under autocast to that type; `None` for float32.
    """
    device = next(model.parameters()).device
    model = copy.deepcopy(model).cpu().requires_grad_(False).eval()  # on a GPU, TF32 would hide what the folds change
    image = torch.randn(2, 3, input_size, input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = _foldable(model, image, _tensors(model(image)), _adjacent(model, image))
        model = _folded(model, pairs)
    if dtype is not None:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # the other layers are little work, and decide the outputs' accuracy
                module.to(dtype)
    return model.to(device), len(pairs)


def _foldable(model: nn.Module, image: Tensor, expected: List[Tensor], pairs: List[Pair]) -> List[Pair]:
    """Return those of the pairs that leave the outputs as they are, by halves of halves."""
    given = _tensors(_folded(model, pairs)(image))
    if all(_close(*tensors) for tensors in zip(given, expected)):
        return pairs
    half = len(pairs) // 2
    return [pair for part in (pairs[:half], pairs[half:]) if half for pair in _foldable(model, image, expected, part)]


def _adjacent(model: nn.Module, image: Tensor) -> List[Pair]:
    """Return the names of each convolution and the BatchNorm that takes its result, where both run once."""
    made: Dict[int, Tuple[str, Tensor]] = {}  # holds the tensors, so that no number is given twice
    runs: Dict[str, int] = {}
    pairs: List[Pair] = []
    hooks = []

    def after(name: str) -> Any:
        def note(module: nn.Module, inputs: Tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                made[id(output)] = (name, output)
            elif id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        return note

    for name, module in model.named_modules():
        if type(module) is nn.Conv2d or (type(module) is nn.BatchNorm2d and module.track_running_stats):
            hooks.append(module.register_forward_hook(after(name)))
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(runs[name] == 1 for name in pair)]


def _folded(model: nn.Module, pairs: List[Pair]) -> nn.Module:
    """Return a copy in which each pair is one convolution, and an identity in the BatchNorm's place."""
    model = copy.deepcopy(model)
    for convolution, norm in pairs:
        first: Any = model.get_submodule(convolution)
        second: Any = model.get_submodule(norm)
        for name, module in ((convolution, fuse_conv_bn_eval(first, second)), (norm, nn.Identity())):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
    return model


def _tensors(output: Any) -> List[Tensor]:
    """Return all tensors in the nested output of a model, in order."""
    if isinstance(output, Tensor):
        return [output]
    if not isinstance(output, (dict, list, tuple)):
        return []
    entries = output.values() if isinstance(output, dict) else output
    return [tensor for entry in entries for tensor in _tensors(entry)]


def _close(given: Tensor, expected: Tensor) -> bool:
    return bool((given - expected).abs().max() <= FOLDING_TOLERANCE * expected.abs().max().clamp_min(1e-6))
