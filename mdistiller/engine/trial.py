"""A trial forward pass on random images, before files are written, so that a broken method replaces no earlier run."""

from __future__ import annotations

import copy
from typing import Any, List, Optional

import torch
from torch import Tensor

from ..distillers import Distiller
from ..errors import UserError, listed
from ..models._adapt import noise
from .run.random_state import keep_random_state
from .speed.precision import Precision

NUM_IMAGES = 2
EXPECTED = "expected a tuple (logits [B, N], losses), where losses is a dict of scalar tensors like {'loss_kd': loss}"


def trial_losses(
    distiller: Distiller, input_size: int, num_classes: int, epoch: int, precision: Precision
) -> Optional[List[str]]:
    """Return the names of the losses that a distiller returns for images of noise.

    It runs on a copy, so neither the distiller nor the random state changes.

    Args:
        distiller: the distiller.
        input_size: the side of the images in pixels.
        num_classes: the number of classes, `N`.
        epoch: the epoch, counted from 1.
        precision: the precision of the forward pass.

    Returns:
        The names, or `None` if the distiller cannot be copied.

    Raises:
        UserError: the result is not what a training step needs. An error in the distiller's own code is not caught.
    """
    try:
        copied = copy.deepcopy(distiller).train()
    except (TypeError, RuntimeError):
        return None
    image = distiller.in_memory_format(noise(distiller, input_size, NUM_IMAGES))
    index = torch.arange(NUM_IMAGES, device=image.device)
    with keep_random_state(image.device), precision.autocast():
        result = copied(image=image, target=index % num_classes, index=index, epoch=epoch)
    return _checked(type(distiller).__name__, result, num_classes)


def _checked(name: str, result: Any, num_classes: int) -> List[str]:
    """Return the names of the losses in the result of `forward_train`."""
    expected = [NUM_IMAGES, num_classes]
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        fault = f"a {type(result).__name__}"
    elif not (isinstance(result[0], Tensor) and list(result[0].shape) == expected):
        fault = f"logits of shape {list(getattr(result[0], 'shape', []))} instead of {expected}"
    elif not result[1] or not all(isinstance(loss, Tensor) for loss in result[1].values()):
        fault = f"the losses {result[1]!r:.80}"
    elif not any(loss.requires_grad for loss in result[1].values()):
        fault = f"losses without a gradient ({listed(list(result[1]))})"
    else:
        return list(result[1])
    raise UserError(f"{name}.forward_train returned {fault}; {EXPECTED}")
