"""Small pieces that several methods share."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models._adapt import evaluating
from ..ranges import Range

InputSize = Union[int, Sequence[int]]  # pixels: a side, or (height, width) as MDistiller has it


def probe(model: nn.Module, input_size: InputSize) -> Tuple[Tensor, Dict[str, Any]]:
    """Return `(logits, feats)` of two blank images `[2, 3, height, width]` of `input_size`, to read shapes from.

    In evaluation mode, so that no BatchNorm statistic moves.
    """
    height, width = settled_input_size(None, input_size, "DATASET.INPUT_SIZE")
    first = next(model.parameters())
    with evaluating(model):
        return model(torch.zeros(2, 3, height, width, device=first.device, dtype=first.dtype))


def get_feat_shapes(
    student: nn.Module, teacher: nn.Module, input_size: InputSize
) -> Tuple[List[torch.Size], List[torch.Size]]:
    """Return the shapes of the stage maps, student's and teacher's, for images of `input_size`."""
    shapes = [[feat.shape for feat in probe(model, input_size)[1]["feats"]] for model in (student, teacher)]
    return shapes[0], shapes[1]


def warmup_factor(epoch: int, warmup_epochs: float) -> float:
    """Return the linear rise `epoch / warmup_epochs`, at most 1; `epoch` counts from 1, no warm-up: 1."""
    return min(epoch / warmup_epochs, 1.0) if warmup_epochs > 0 else 1.0


def standardise_logits(logits: Tensor) -> Tensor:
    """Return each row of `logits [B, N]` with its mean subtracted, divided by its standard deviation; float32.

    What is left to match is the order and the relative size of the logits, not their scale, which students of small
    capacity cannot copy. The deviation is the unbiased one.

    Source: "Logit Standardization in Knowledge Distillation" (2024).
    """
    logits = logits.float()
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def settled_input_size(given: Any, dataset_size: Any, key: str) -> Tuple[int, int]:
    """Return `(height, width)` in pixels of the images whose shapes are probed.

    Args:
        given: what the config key named `key` holds: a side, `[height, width]`, or `None` to infer.
        dataset_size: `cfg.DATASET.INPUT_SIZE`, the side (or both) of the data set's images, for a `given` of `None`.

    Raises:
        UserError: neither says it, or `given` is no size.
    """
    size = dataset_size if given is None else given
    if size is None:
        raise UserError(f"{key} is None and no data set says the images' size; set DATASET.INPUT_SIZE to it, as in 32")
    if size not in IMAGE_SIZE:
        raise UserError(f"{key} is {given!r}; expected {IMAGE_SIZE.expected}")
    return _sides(size)


def _sides(size: InputSize) -> Tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height, width


IMAGE_SIZE = Range(
    lambda size: size is None or all(type(side) is int and side > 0 for side in _sides(size)),
    "[height, width] in pixels, as in [32, 32], or None to infer",
)


def stage_shapes(model: nn.Module, input_size: InputSize, key: str = "feats") -> List[torch.Size]:
    """Return the shapes `[2, C_i, H_i, W_i]` of a model's stage maps for images of `input_size`, stem first.

    Raises:
        UserError: the model gives no list `key` of at least two maps, a stem's and a stage's.
    """
    shapes = [feat.shape for feat in probe(model, input_size)[1].get(key, ())]
    _check_count(model, len(shapes), key)
    return shapes


def check_stages(*models: Any) -> None:
    """Raise a UserError unless each model has at least one stage after the stem, whose maps can be compared."""
    for model in models:
        _check_count(model, len(model.get_stage_channels()), "feats")


def _check_count(model: nn.Module, count: int, key: str) -> None:
    if count < 2:
        raise UserError(
            f"{type(model).__name__} gives {count} maps in {key!r}; expected the stem's and at least one stage's:"
            " use a method that needs no maps (such as KD), or another model"
        )


def match_size(feat_student: Tensor, feat_teacher: Tensor) -> Tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps `[B, C_s, H_s, W_s]`, `[B, C_t, H_t, W_t]` to the smaller one's size."""
    height, width = (min(s, t) for s, t in zip(feat_student.shape[-2:], feat_teacher.shape[-2:]))
    return _pooled_to(feat_student, height, width), _pooled_to(feat_teacher, height, width)


def _pooled_to(feat: Tensor, height: int, width: int) -> Tensor:
    rows, columns = feat.shape[-2:]
    if (rows, columns) == (height, width):
        return feat
    if rows % height == 0 and columns % width == 0:
        # the same mean, but on a GPU its gradient, unlike adaptive pooling's, is the same in every run
        return F.avg_pool2d(feat, (rows // height, columns // width))
    return F.adaptive_avg_pool2d(feat, (height, width))


class ConvReg(nn.Module):
    """A learnable map from one feature shape to another: a convolution that also sets the size, BatchNorm, ReLU.

    Half and double the size are a strided and a transposed convolution, smaller sizes a kernel as large as the
    difference needs. Where the map has to grow by any other factor: a 1x1 convolution and the nearest pixel.

    Args:
        s_shape: `[B, C_s, H_s, W_s]`, the shape of what comes in.
        t_shape: `[B, C_t, H_t, W_t]`, the shape of what goes out.
        use_relu: whether a ReLU ends it.
    """

    def __init__(self, s_shape: Sequence[int], t_shape: Sequence[int], use_relu: bool = True) -> None:
        super().__init__()
        _, s_channels, *s_size = s_shape
        _, t_channels, *t_size = t_shape
        sides = list(zip(s_size, t_size))
        self.upsampled_to: Optional[List[int]] = None
        self.conv: nn.Module
        if all(s == 2 * t for s, t in sides):
            self.conv = nn.Conv2d(s_channels, t_channels, kernel_size=3, stride=2, padding=1)
        elif all(2 * s == t for s, t in sides):
            self.conv = nn.ConvTranspose2d(s_channels, t_channels, kernel_size=4, stride=2, padding=1)
        elif all(s >= t for s, t in sides):
            kernel_size = (1 + s_size[0] - t_size[0], 1 + s_size[1] - t_size[1])
            self.conv = nn.Conv2d(s_channels, t_channels, kernel_size)
        else:
            self.conv = nn.Conv2d(s_channels, t_channels, kernel_size=1)
            self.upsampled_to = t_size
        self.bn = nn.BatchNorm2d(t_channels)
        self.relu = nn.ReLU() if use_relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Turn `[B, C_s, H_s, W_s]` into `[B, C_t, H_t, W_t]`."""
        x = self.conv(x)
        if self.upsampled_to is not None:
            x = F.interpolate(x, size=self.upsampled_to, mode="nearest")
        return self.relu(self.bn(x))
