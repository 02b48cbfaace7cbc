"""ResNets for ImageNet, with torchvision's `state_dict` keys.

Source: "Deep Residual Learning for Image Recognition" (2016), section 4.1; a Bottleneck's stride is in its 3x3
convolution, as in torchvision. Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import Any, List, Sequence, Type, Union

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet

from .._blocks import ReluSequential, as_batch_norm, run_stages
from .._contract import ClassifierModel, Stages
from ._pretrained import with_released_weights


class BasicBlock(resnet.BasicBlock):
    """torchvision's block without its last ReLU, which the stage applies."""

    @property
    def last_bn(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to the sum `[B, C', H', W']` before its ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + (x if self.downsample is None else self.downsample(x))


class Bottleneck(resnet.Bottleneck):
    """torchvision's block without its last ReLU, which the stage applies."""

    @property
    def last_bn(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Map an activated map `[B, C, H, W]` to the sum `[B, C', H', W']` before its ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x))


class ResNet(ClassifierModel):
    """A ResNet whose stem has a quarter of the image's size.

    The stem's ReLU is applied after the max pooling instead of before it, which gives the same result. So the stem's
    map is available before and after its ReLU, at the size of the first stage.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        num_blocks: blocks of each of the four stages.
        num_classes: number of outputs of the classifier.
    """

    def __init__(
        self, block: Union[Type[BasicBlock], Type[Bottleneck]], num_blocks: Sequence[int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.stage_channels = [64, *(block.expansion * width for width in (64, 128, 256, 512))]
        reference = resnet.ResNet(block, list(num_blocks), num_classes)  # for its layers and initial weights
        self.conv1, self.bn1, self.maxpool = reference.conv1, reference.bn1, reference.maxpool
        self.layer1 = ReluSequential(*reference.layer1)
        self.layer2 = ReluSequential(*reference.layer2)
        self.layer3 = ReluSequential(*reference.layer3)
        self.layer4 = ReluSequential(*reference.layer4)
        self.fc = reference.fc

    def forward_stages(self, image: Tensor) -> Stages:
        stem = self.maxpool(self.bn1(self.conv1(image)))
        return run_stages(stem, (self.layer1, self.layer2, self.layer3, self.layer4))

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [as_batch_norm(stage[-1].last_bn) for stage in stages]


def ResNet18(pretrained: bool = False, num_classes: int = 1000) -> ResNet:
    return _build("ResNet18", pretrained, BasicBlock, (2, 2, 2, 2), num_classes)


def ResNet34(pretrained: bool = False, num_classes: int = 1000) -> ResNet:
    return _build("ResNet34", pretrained, BasicBlock, (3, 4, 6, 3), num_classes)


def ResNet50(pretrained: bool = False, num_classes: int = 1000) -> ResNet:
    return _build("ResNet50", pretrained, Bottleneck, (3, 4, 6, 3), num_classes)


def ResNet101(pretrained: bool = False, num_classes: int = 1000) -> ResNet:
    return _build("ResNet101", pretrained, Bottleneck, (3, 4, 23, 3), num_classes)


def _build(name: str, pretrained: bool, *arguments: Any) -> ResNet:
    model = ResNet(*arguments)
    return with_released_weights(model, name) if pretrained else model
