"""ImageNet ResNets (four stages) with a 3x3 stem for small images.

Source: "Deep Residual Learning for Image Recognition" (2016), section 4.1; the stem as in "Contrastive Representation
Distillation" (2020). The file's name follows the published code. The blocks are not the pre-activation ("v2") blocks
of "Identity Mappings in Deep Residual Networks". Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import List, Sequence, Type, Union

import torch.nn.functional as F
from torch import Tensor, nn

from .._blocks import ReluSequential, as_batch_norm, conv, init_he, run_stages
from .._contract import ClassifierModel, Stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the stage applies the ReLU after the sum."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to the sum `[B, C', H', W']` before its ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.shortcut(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut; the stage applies the ReLU after the sum."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, self.expansion * width, 1)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)
        self.shortcut = _shortcut(in_channels, self.expansion * width, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to the sum `[B, C', H', W']` before its ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


Block = Union[Type[BasicBlock], Type[Bottleneck]]


class ResNet(ClassifierModel):
    """A four-stage ResNet whose stem preserves the image's size.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        num_blocks: blocks of each of the four stages.
        num_classes: number of outputs of the classifier.
    """

    classifier_name = "linear"

    def __init__(self, block: Block, num_blocks: Sequence[int], num_classes: int = 100) -> None:
        super().__init__()
        self.stage_channels = [64, *(block.expansion * width for width in (64, 128, 256, 512))]
        self.conv1 = conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, num_blocks[0], stride=1)
        self.layer2 = _stage(block, self.stage_channels[1], 128, num_blocks[1], stride=2)
        self.layer3 = _stage(block, self.stage_channels[2], 256, num_blocks[2], stride=2)
        self.layer4 = _stage(block, self.stage_channels[3], 512, num_blocks[3], stride=2)
        self.linear = nn.Linear(self.stage_channels[4], num_classes)
        init_he(self)

    def forward_stages(self, image: Tensor) -> Stages:
        return run_stages(self.bn1(self.conv1(image)), (self.layer1, self.layer2, self.layer3, self.layer4))

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [as_batch_norm(stage[-1].last_bn) for stage in stages]


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def _stage(block: Block, in_channels: int, width: int, num_blocks: int, stride: int) -> ReluSequential:
    others = (block(block.expansion * width, width, stride=1) for _ in range(num_blocks - 1))
    return ReluSequential(block(in_channels, width, stride), *others)


def ResNet18(num_classes: int = 100) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def ResNet34(num_classes: int = 100) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def ResNet50(num_classes: int = 100) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)
