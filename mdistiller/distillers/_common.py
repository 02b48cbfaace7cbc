"""Small pieces that several methods share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode without gradients, and every submodule back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def probe(model: nn.Module, input_size: int) -> Tuple[Tensor, Dict[str, Any]]:
    """Return `(logits, feats)` of two blank images `[2, 3, input_size, input_size]`, to read shapes from.

    In evaluation mode, so that no BatchNorm statistic moves.
    """
    first = next(model.parameters())
    with evaluating(model):
        return model(torch.zeros(2, 3, input_size, input_size, device=first.device, dtype=first.dtype))


def get_feat_shapes(
    student: nn.Module, teacher: nn.Module, input_size: int
) -> Tuple[List[torch.Size], List[torch.Size]]:
    """Return the shapes of the stage maps, student's and teacher's, for square images of `input_size` pixels."""
    shapes = [[feat.shape for feat in probe(model, input_size)[1]["feats"]] for model in (student, teacher)]
    return shapes[0], shapes[1]
