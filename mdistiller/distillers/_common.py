"""Functions and modules shared by several methods."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..models import IMAGE_SIZES
from ..models._adapt import evaluation_mode
from ..ranges import Range

CIFAR_SIZE = 32  # pixels
InputSize = Union[int, Sequence[int]]  # pixels: one side, or (height, width) as in MDistiller


def blank_outputs(model: nn.Module, input_size: InputSize) -> Tuple[Tensor, Dict[str, Any]]:
    """Run a model on blank images `[2, 3, height, width]`, to read shapes from its outputs.

    The model runs in evaluation mode, so BatchNorm statistics do not change.

    Returns:
        `(logits, feats)`.
    """
    height, width = resolve_input_size(None, input_size, "DATASET.INPUT_SIZE")
    first = next(model.parameters())
    with evaluation_mode(model):
        return model(torch.zeros(2, 3, height, width, device=first.device, dtype=first.dtype))


def get_feat_shapes(
    student: nn.Module, teacher: nn.Module, input_size: InputSize
) -> Tuple[List[torch.Size], List[torch.Size]]:
    """Return the shapes of the student's and of the teacher's stage maps for images of `input_size`."""
    shapes = [[feat.shape for feat in blank_outputs(model, input_size)[1]["feats"]] for model in (student, teacher)]
    return shapes[0], shapes[1]


def warmup_factor(epoch: int, warmup_epochs: float) -> float:
    """Return `epoch / warmup_epochs`, at most 1, where `epoch` counts from 1; without warm-up return 1."""
    return min(epoch / warmup_epochs, 1.0) if warmup_epochs > 0 else 1.0


def standardize_logits(logits: Tensor) -> Tensor:
    """Return `logits [B, N]` in float32, each row shifted to mean 0 and scaled to standard deviation 1.

    A student then matches the order and the relative size of the logits. It need not match their scale, which a
    student of small capacity cannot copy. The standard deviation is the unbiased one.

    Source: "Logit Standardization in Knowledge Distillation" (2024).
    """
    logits = logits.float()
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def image_size(cfg: CfgNode) -> InputSize:
    """Return the size of the images in pixels: `DATASET.INPUT_SIZE`, or that of the data set `DATASET.TYPE`.

    Training always sets `INPUT_SIZE`. A configuration of MDistiller, or an unchanged `CFG`, does not; its data set is
    CIFAR-100, with 32 pixels, unless it says another.
    """
    given = cfg.DATASET.INPUT_SIZE
    return IMAGE_SIZES.get(cfg.DATASET.TYPE, CIFAR_SIZE) if given is None else given


def resolve_input_size(given: Any, dataset_size: Any, key: str) -> Tuple[int, int]:
    """Return `(height, width)` in pixels of the images to probe shapes with.

    Args:
        given: the value of the config key `key`: one side, `[height, width]`, or `None` for `dataset_size`.
        dataset_size: `image_size(cfg)`, one side or `[height, width]`.
        key: the config key, named in error messages.

    Raises:
        UserError: both sizes are `None`, or the size is invalid.
    """
    size = dataset_size if given is None else given
    if size is None:
        raise UserError(
            f"{key} is None and the size of the images is unknown; set DATASET.INPUT_SIZE, for example to 32"
        )
    if size not in IMAGE_SIZE:
        key = "DATASET.INPUT_SIZE" if given is None else key
        raise UserError(f"{key} is {size!r}; expected {IMAGE_SIZE.expected}")
    return _sides(size)


def _sides(size: InputSize) -> Tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height, width


IMAGE_SIZE = Range(
    lambda size: size is None or all(type(side) is int and side > 0 for side in _sides(size)),
    "[height, width] in pixels, as in [32, 32], or None to infer",
)


def stage_shapes(model: nn.Module, input_size: InputSize, key: str = "feats") -> List[torch.Size]:
    """Return the shapes `[2, C_i, H_i, W_i]` of a model's stage maps, stem first.

    Args:
        model: the model.
        input_size: the size of the images, in pixels.
        key: the key of the maps: `feats`, or `preact_feats` for the maps before their activation.

    Raises:
        UserError: the model returns fewer than two maps, one of the stem and one of a stage.
    """
    shapes = [feat.shape for feat in blank_outputs(model, input_size)[1].get(key, ())]
    _check_count(model, len(shapes), key)
    return shapes


def check_stages(*models: Any) -> None:
    """Raise a UserError if a model has no stage after the stem."""
    for model in models:
        _check_count(model, len(model.get_stage_channels()), "feats")


def _check_count(model: nn.Module, count: int, key: str) -> None:
    if count < 2:
        raise UserError(
            f"{type(model).__name__} gives {count} maps in {key!r}; expected those of the stem and of at least one"
            " stage: use a method that needs no maps (such as KD), or another model"
        )


def match_size(feat_student: Tensor, feat_teacher: Tensor) -> Tuple[Tensor, Tensor]:
    """Average-pool maps `[B, C_s, H_s, W_s]` and `[B, C_t, H_t, W_t]` to the smaller height and the smaller width."""
    height, width = (min(s, t) for s, t in zip(feat_student.shape[-2:], feat_teacher.shape[-2:]))
    return pooled_to(feat_student, height, width), pooled_to(feat_teacher, height, width)


def pooled_to(feat: Tensor, height: int, width: int) -> Tensor:
    """Return maps `[B, C, H, W]` average-pooled to `[B, C, height, width]`, as adaptive pooling does."""
    rows, columns = map(int, feat.shape[-2:])  # int, because sizes are tensors while a network is traced
    if (rows, columns) == (height, width):
        return feat
    if rows % height == 0 and columns % width == 0:
        # the same mean; on a GPU the gradient of adaptive pooling would differ from run to run
        return F.avg_pool2d(feat, (rows // height, columns // width))
    return F.adaptive_avg_pool2d(feat, (height, width))


class ConvReg(nn.Module):
    """A learnable map from one feature shape to another: a convolution that also changes the size, BatchNorm, ReLU.

    The convolution depends on the two sizes:

    - half the size: 3x3 with stride 2;
    - twice the size: a transposed convolution, 4x4 with stride 2;
    - otherwise, no larger side: unpadded, with a kernel of `(1 + H_s − H_t) x (1 + W_s − W_t)`;
    - otherwise: 1x1, followed by nearest-neighbor upsampling.

    Args:
        s_shape: the shape of the input, `[B, C_s, H_s, W_s]`.
        t_shape: the shape of the output, `[B, C_t, H_t, W_t]`.
        use_relu: whether to end with a ReLU.
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
        """Map `[B, C_s, H_s, W_s]` to `[B, C_t, H_t, W_t]`."""
        x = self.conv(x)
        if self.upsampled_to is not None:
            x = F.interpolate(x, size=self.upsampled_to, mode="nearest")
        return self.relu(self.bn(x))
