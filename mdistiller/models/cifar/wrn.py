"""Wide residual networks, without dropout.

Source: "Wide Residual Networks" (2016). Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from .._blocks import as_batch_norm, conv, init_he
from .._contract import ClassifierModel, Stages


class Unit(nn.Module):
    """A pre-activation residual unit: BatchNorm and ReLU before each of its two 3x3 convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut: Optional[nn.Conv2d] = None
        if in_channels != channels:
            self.convShortcut = conv(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the unit's raw output for a raw map `[B, C, H, W]`, and `bn1` of the input.

        That BatchNorm's output is the `preact_feats` entry of the previous stage. Returning it avoids a second run.
        """
        normed = self.bn1(x)
        activated = F.relu(normed)
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return out + shortcut, normed


class Block(nn.Module):
    """A stage: a sequence of units, the first with the stride."""

    def __init__(self, in_channels: int, channels: int, num_units: int, stride: int) -> None:
        super().__init__()
        others = (Unit(channels, channels, stride=1) for _ in range(num_units - 1))
        self.layer = nn.Sequential(Unit(in_channels, channels, stride), *others)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the stage's raw output for a raw map `[B, C, H, W]`, and the first unit's `bn1` of the input."""
        first, *others = self.layer
        x, normed = first(x)
        for unit in others:
            x, _ = unit(x)
        return x, normed


class WideResNet(ClassifierModel):
    """A wide ResNet. Its `feats` are the stages' raw outputs, whose BatchNorm and ReLU are in the layers after them.

    Args:
        depth: number of layers, `6n + 4` for `n` units a stage.
        widen: factor on the channels (16, 32, 64) of the three stages.
        num_classes: number of outputs of the classifier.
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 100) -> None:
        super().__init__()
        assert depth % 6 == 4, depth
        self.stage_channels = [16, 16 * widen, 32 * widen, 64 * widen]
        stem, first, second, third = self.stage_channels
        self.conv1 = conv(3, stem, 3)
        self.block1 = Block(stem, first, depth // 6, stride=1)
        self.block2 = Block(first, second, depth // 6, stride=2)
        self.block3 = Block(second, third, depth // 6, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        init_he(self)
        nn.init.zeros_(self.fc.bias)

    def forward_stages(self, image: Tensor) -> Stages:
        stem = self.conv1(image)
        first, _ = self.block1(stem)
        second, first_normed = self.block2(first)
        third, second_normed = self.block3(second)
        third_normed = self.bn1(third)
        return Stages(
            feats=[stem, first, second, third],
            preact_feats=[stem, first_normed, second_normed, third_normed],
            final_map=F.relu(third_normed),
        )

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        return [as_batch_norm(block.layer[0].bn1) for block in (self.block2, self.block3)] + [self.bn1]


def wrn_16_1(num_classes: int = 100) -> WideResNet:
    return WideResNet(16, 1, num_classes)


def wrn_16_2(num_classes: int = 100) -> WideResNet:
    return WideResNet(16, 2, num_classes)


def wrn_40_1(num_classes: int = 100) -> WideResNet:
    return WideResNet(40, 1, num_classes)


def wrn_40_2(num_classes: int = 100) -> WideResNet:
    return WideResNet(40, 2, num_classes)
