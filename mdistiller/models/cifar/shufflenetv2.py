"""ShuffleNetV2 of size 1, for small images.

Source: "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (2018); the 1x1 stem as in
"Contrastive Representation Distillation" (2020). Shapes: `B` batch, `C` channels, `H`/`W` pixels.

Half of a unit's channels pass through the next unit unchanged. Units therefore return the map before its ReLU, and
each unit applies the ReLU to the channels that it processes. So every channel of `preact_feats` is the output of a
BatchNorm, and `get_bn_before_relu` can trace which one.
"""

from __future__ import annotations

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._blocks import conv, run_stages, shuffle_channels
from .._contract import ClassifierModel, Stages


class BasicBlock(nn.Module):
    """A unit at stride 1: keeps the first half of the channels; 1x1, depthwise 3x3 and 1x1 on the second half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, preact: Tensor) -> Tensor:
        """Map a map before its ReLU, `[B, C, H, W]`, to the next one, `[B, C, H, W]`."""
        kept, processed = preact.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(F.relu(processed))))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return _merge(kept, out)

    def trace(self, origin: Tensor) -> Tensor:
        """Map the BatchNorm values `[4, C]` of the input's channels to those of the output's channels."""
        kept, _ = origin.chunk(2, 1)
        return _merge(kept, _rows(self.bn3))


class DownBlock(nn.Module):
    """A unit at stride 2: two branches process the whole input, and each produces one half of the output."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to a map before its ReLU, `[B, C', H', W']`."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return _merge(left, right)

    def trace(self, origin: Tensor) -> Tensor:
        """Return the BatchNorm values `[4, C']` of the output's channels, which do not depend on the input's."""
        return _merge(_rows(self.bn2), _rows(self.bn5))


class Stage(nn.Sequential):
    """A `DownBlock` followed by `num_blocks` `BasicBlock`s."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int) -> None:
        super().__init__(DownBlock(in_channels, channels), *(BasicBlock(channels) for _ in range(num_blocks)))

    @torch.no_grad()
    def output_bn(self) -> nn.BatchNorm2d:
        """Return a new BatchNorm with copies of the values of the stage's output channels."""
        rows = torch.empty(4, 0)
        for unit in self:
            assert isinstance(unit, (DownBlock, BasicBlock))
            rows = unit.trace(rows)
        norm = nn.BatchNorm2d(rows.shape[1], device=rows.device, dtype=rows.dtype).eval().requires_grad_(False)
        for tensor, row in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var), rows):
            assert tensor is not None
            tensor.copy_(row)
        return norm


class ShuffleNetV2(ClassifierModel):
    """A ShuffleNetV2 of size 1.

    A 1x1 convolution follows the final map, so the pooled feature has more channels than the map.

    Args:
        num_classes: number of outputs of the classifier.
    """

    classifier_name = "linear"
    stage_channels = [24, 116, 232, 464]

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        stem, first, second, third = self.stage_channels
        pooled = 1024
        self.conv1 = conv(3, stem, 1)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = Stage(stem, first, 3)
        self.layer2 = Stage(first, second, 7)
        self.layer3 = Stage(second, third, 3)
        self.conv2 = conv(third, pooled, 1)
        self.bn2 = nn.BatchNorm2d(pooled)
        self.linear = nn.Linear(pooled, num_classes)

    def forward_stages(self, image: Tensor) -> Stages:
        return run_stages(self.bn1(self.conv1(image)), (self.layer1, self.layer2, self.layer3))

    def forward_map(self, final_map: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(final_map)))

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        """Return, for each stage, a copy of the BatchNorm values of its map, in the order of the map's channels."""
        return [stage.output_bn() for stage in (self.layer1, self.layer2, self.layer3)]


def _merge(first: Tensor, second: Tensor) -> Tensor:
    return shuffle_channels(torch.cat([first, second], 1), 2)


def _rows(norm: nn.BatchNorm2d) -> Tensor:
    """Return a BatchNorm's weight, bias, running mean and running variance, `[4, C]`."""
    assert norm.running_mean is not None and norm.running_var is not None
    return torch.stack([norm.weight, norm.bias, norm.running_mean, norm.running_var])


def ShuffleV2(num_classes: int = 100) -> ShuffleNetV2:
    return ShuffleNetV2(num_classes)
