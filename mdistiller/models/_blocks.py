"""Layers and functions shared by several model families.

Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._contract import Stages


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 preserves the map's size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)


class ReluSequential(nn.Sequential):
    """Units with a ReLU between each two of them, but none after the last.

    The input is an activated map, the output is the map before its ReLU, so a distiller can read both.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to the last unit's map before its ReLU."""
        first, *others = self
        x = first(x)
        for unit in others:
            x = unit(F.relu(x))
        return x


def run_stages(stem: Tensor, stages: Iterable[nn.Module]) -> Stages:
    """Run all stages and collect their maps.

    Args:
        stem: the stem's map before its ReLU, `[B, C, H, W]`.
        stages: modules that map an activated map to the next map before its ReLU.
    """
    preacts, feats = [stem], [F.relu(stem)]
    for stage in stages:
        preacts.append(stage(feats[-1]))
        feats.append(F.relu(preacts[-1]))
    return Stages(feats, preacts, final_map=feats[-1])


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `x [B, C, ...]` from `groups` equal groups; the memory format is preserved.

    Source: "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (2018).
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        pixels = x.permute(0, 2, 3, 1)
        return pixels.unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def as_batch_norm(module: object) -> nn.BatchNorm2d:
    """Return `module` after asserting that it is a BatchNorm; for the type checker."""
    assert isinstance(module, nn.BatchNorm2d), module
    return module


def init_he(model: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (k * k * out_channels)) and zero their biases.

    Source: "Delving Deep into Rectifiers" (2015), in its fan-out form.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
