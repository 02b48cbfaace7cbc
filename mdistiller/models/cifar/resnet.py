"""CIFAR ResNets: three stages of basic blocks.

Source: "Deep Residual Learning for Image Recognition" (2016), section 4.2; the wide `x4` variants are from
"Contrastive Representation Distillation" (2020). Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import List, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .._blocks import ReluSequential, as_batch_norm, conv, init_he, run_stages
from .._contract import ClassifierModel, Stages

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the stage applies the ReLU after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to the sum `[B, C', H', W']` before its ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.downsample(x)


class ResNet(ClassifierModel):
    """A CIFAR ResNet.

    Args:
        depth: number of layers, `6n + 2` for `n` blocks a stage.
        widths: channels of the stem and of the three stages.
        num_classes: number of outputs of the classifier.
    """

    def __init__(self, depth: int, widths: Sequence[int], num_classes: int = 100) -> None:
        super().__init__()
        assert depth % 6 == 2, depth
        self.stage_channels = list(widths)
        self.conv1 = conv(3, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], depth // 6, stride=1)
        self.layer2 = _stage(widths[1], widths[2], depth // 6, stride=2)
        self.layer3 = _stage(widths[2], widths[3], depth // 6, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_he(self)

    def forward_stages(self, image: Tensor) -> Stages:
        return run_stages(self.bn1(self.conv1(image)), (self.layer1, self.layer2, self.layer3))

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        return [as_batch_norm(stage[-1].bn2) for stage in (self.layer1, self.layer2, self.layer3)]


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> ReluSequential:
    others = (BasicBlock(channels, channels, stride=1) for _ in range(num_blocks - 1))
    return ReluSequential(BasicBlock(in_channels, channels, stride), *others)


def resnet8(num_classes: int = 100) -> ResNet:
    return ResNet(8, NARROW, num_classes)


def resnet14(num_classes: int = 100) -> ResNet:
    return ResNet(14, NARROW, num_classes)


def resnet20(num_classes: int = 100) -> ResNet:
    return ResNet(20, NARROW, num_classes)


def resnet32(num_classes: int = 100) -> ResNet:
    return ResNet(32, NARROW, num_classes)


def resnet44(num_classes: int = 100) -> ResNet:
    return ResNet(44, NARROW, num_classes)


def resnet56(num_classes: int = 100) -> ResNet:
    return ResNet(56, NARROW, num_classes)


def resnet110(num_classes: int = 100) -> ResNet:
    return ResNet(110, NARROW, num_classes)


def resnet8x4(num_classes: int = 100) -> ResNet:
    return ResNet(8, WIDE, num_classes)


def resnet32x4(num_classes: int = 100) -> ResNet:
    return ResNet(32, WIDE, num_classes)
