"""VGG with BatchNorm and a single linear classifier.

Source: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015); five blocks and the short vgg8
as in "Contrastive Representation Distillation" (2020). Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import List, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .._blocks import as_batch_norm, init_he
from .._contract import ClassifierModel, Stages

MIN_HEIGHT_FOR_FOURTH_POOLING = 64  # pixels; for smaller images the last map would shrink to 2x2


class VGG(ClassifierModel):
    """A VGG of five blocks, `block0` to `block4`.

    Args:
        depths: convolutions of each block.
        num_classes: number of outputs of the classifier.
    """

    classifier_name = "classifier"
    stage_channels = [64, 128, 256, 512, 512]

    def __init__(self, depths: Sequence[int], num_classes: int = 100) -> None:
        super().__init__()
        self.block0 = _block(3, 64, depths[0])
        self.block1 = _block(64, 128, depths[1])
        self.block2 = _block(128, 256, depths[2])
        self.block3 = _block(256, 512, depths[3])
        self.block4 = _block(512, 512, depths[4])
        self.classifier = nn.Linear(512, num_classes)
        init_he(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward_stages(self, image: Tensor) -> Stages:
        blocks = (self.block0, self.block1, self.block2, self.block3, self.block4)
        pool_before = (False, True, True, True, image.shape[2] >= MIN_HEIGHT_FOR_FOURTH_POOLING)
        x, feats, preacts = image, [], []
        for block, pool in zip(blocks, pool_before):
            preacts.append(block(F.max_pool2d(x, 2) if pool else x))
            x = F.relu(preacts[-1])
            feats.append(x)
        return Stages(feats, preacts, final_map=x)

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        return [as_batch_norm(block[-1]) for block in (self.block1, self.block2, self.block3, self.block4)]


def _block(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    """Return `depth` units of convolution, BatchNorm and ReLU, without the last ReLU."""
    layers: List[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers[:-1])


def vgg8(num_classes: int = 100) -> VGG:
    return VGG((1, 1, 1, 1, 1), num_classes)


def vgg11(num_classes: int = 100) -> VGG:
    return VGG((1, 1, 2, 2, 2), num_classes)


def vgg13(num_classes: int = 100) -> VGG:
    return VGG((2, 2, 2, 2, 2), num_classes)


def vgg16(num_classes: int = 100) -> VGG:
    return VGG((2, 2, 3, 3, 3), num_classes)


def vgg19(num_classes: int = 100) -> VGG:
    return VGG((2, 2, 4, 4, 4), num_classes)
