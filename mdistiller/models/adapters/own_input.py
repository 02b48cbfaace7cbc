"""A model that sees images in its own size and normalization, whatever those of the run are.

Shapes: `B` batch, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._contract import ClassifierModel, Stages

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


class InputSpec(NamedTuple):
    """The size, normalization and interpolation of the images that a model expects.

    Attributes:
        size: the side in pixels.
        mean, std: the channel statistics of images scaled to [0, 1].
        interpolation: the kind of interpolation, one of `INTERPOLATIONS`.
    """

    size: int
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    interpolation: str = "bicubic"

    def in_words(self) -> str:
        """Return the size and the statistics for the user."""
        mean, std = ([round(value, 4) for value in values] for values in (self.mean, self.std))
        return f"{self.size} px, mean {mean}, std {std}"


class _OwnInput(nn.Module):
    """Converts images before the model; `give_own_input` inserts this class before the model's own class."""

    own_input: InputSpec
    input_scale: Tensor
    input_shift: Tensor

    def convert_input(self, image: Tensor) -> Tensor:
        """Return `image [B, 3, H, W]`, normalized for the run, in the size and normalization of this model."""
        size, kind = self.own_input.size, self.own_input.interpolation
        image = image.float()
        if tuple(image.shape[-2:]) != (size, size):
            smooth = {} if kind == "nearest" else {"align_corners": False, "antialias": True}
            image = F.interpolate(image, (size, size), mode=kind, **smooth)
        return image * self.input_scale + self.input_shift


class _OwnInputContract(_OwnInput):
    def forward_stages(self, image: Tensor) -> Stages:
        return super().forward_stages(self.convert_input(image))  # type: ignore[misc]


class _OwnInputForward(_OwnInput):
    def forward(self, image: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(self.convert_input(image), *args, **kwargs)


def give_own_input(model: nn.Module, own: InputSpec, given: InputSpec) -> nn.Module:
    """Let `model` convert its images, in place, and return it.

    The images are resized on their device, in float32. Normalization is affine and interpolation weights sum to 1, so
    the normalized images can be resized as they are. One multiplication and one addition then change the normalization
    of the run to that of the model. Layers, weights and their names do not change.

    Args:
        model: a model that follows the contract of `ClassifierModel`, from the zoo or adapted.
        own: the images that it expects.
        given: the images that it gets.
    """
    if own._replace(interpolation="") == given._replace(interpolation=""):
        return model
    mean, std, mean_given, std_given = (
        torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
        for values in (own.mean, own.std, given.mean, given.std)
    )
    converting: Any = model
    kind = type(model)
    mixin = _OwnInputContract if isinstance(model, ClassifierModel) else _OwnInputForward
    shown = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "own_input": own}
    converting.__class__ = type(kind.__name__, (mixin, kind), shown)
    device = next(model.parameters()).device
    # not persistent, so that the state_dict stays that of the model
    converting.register_buffer("input_scale", (std_given / std).float().to(device), persistent=False)
    converting.register_buffer("input_shift", ((mean_given - mean) / std).float().to(device), persistent=False)
    return converting


def own_input_of(model: nn.Module) -> Tuple[Any, ...]:
    """Return the `InputSpec` to which `model` converts its input, as plain values; empty if it does not convert it."""
    own = getattr(model, "own_input", None)
    return () if own is None else (own.size, list(own.mean), list(own.std), own.interpolation)
