"""ShuffleNet with three groups, for small images.

Source: "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (2018); the 1x1 stem and
the ReLU after the depthwise convolution, which the paper omits, as in "Contrastive Representation Distillation"
(2020). Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._blocks import ReluSequential, as_batch_norm, conv, run_stages, shuffle_channels
from .._contract import ClassifierModel, Stages

STEM_CHANNELS = 24


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, merged with the shortcut; the stage applies the last ReLU.

    At stride 1 the shortcut is added. At stride 2 it is pooled and concatenated, and makes up `in_channels` of the
    `out_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        branch_channels = out_channels - in_channels if stride == 2 else out_channels
        hidden = branch_channels // 4
        self.first_groups = 1 if in_channels == STEM_CHANNELS else groups
        self.conv1 = conv(in_channels, hidden, 1, groups=self.first_groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv(hidden, hidden, 3, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv(hidden, branch_channels, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(branch_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to the merged map `[B, C', H', W']` before its ReLU."""
        out = shuffle_channels(F.relu(self.bn1(self.conv1(x))), self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)


class ShuffleNetV1(ClassifierModel):
    """A ShuffleNet with stages of 4, 8 and 4 units.

    Args:
        num_classes: number of outputs of the classifier.
        groups: groups of the 1x1 convolutions; the widths are the paper's for 3.
    """

    classifier_name = "linear"
    stage_channels = [STEM_CHANNELS, 240, 480, 960]

    def __init__(self, num_classes: int = 100, groups: int = 3) -> None:
        super().__init__()
        stem, first, second, third = self.stage_channels
        self.conv1 = conv(3, stem, 1)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, 4, groups)
        self.layer2 = _stage(first, second, 8, groups)
        self.layer3 = _stage(second, third, 4, groups)
        self.linear = nn.Linear(third, num_classes)

    def forward_stages(self, image: Tensor) -> Stages:
        return run_stages(self.bn1(self.conv1(image)), (self.layer1, self.layer2, self.layer3))

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        return [as_batch_norm(stage[-1].bn3) for stage in (self.layer1, self.layer2, self.layer3)]


def _stage(in_channels: int, channels: int, num_units: int, groups: int) -> ReluSequential:
    others = (Unit(channels, channels, 1, groups) for _ in range(num_units - 1))
    return ReluSequential(Unit(in_channels, channels, 2, groups), *others)


def ShuffleV1(num_classes: int = 100) -> ShuffleNetV1:
    return ShuffleNetV1(num_classes)
