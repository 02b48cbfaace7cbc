"""MobileNetV1 for ImageNet, with MDistiller's `state_dict` keys.

Source: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (2017). Shapes: `B` batch,
`C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import List

import torch.nn.functional as F
from torch import Tensor, nn

from .._blocks import as_batch_norm, conv
from .._contract import ClassifierModel, Stages
from ._pretrained import with_released_weights

STEM_CHANNELS = 32
# output channels and stride of each depthwise-separable unit
UNITS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
STAGE_ENDS = (3, 5, 11, 13)  # the entries of `model` whose outputs are in `feats`


def separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a depthwise 3x3 and a 1x1 convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        conv(in_channels, in_channels, 3, stride, groups=in_channels),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        conv(in_channels, out_channels, 1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class MobileNetV1(ClassifierModel):
    """A MobileNetV1. A stage ends with the last unit of each map size, from a quarter of the image's size on.

    In MDistiller `feats` starts with the first stage. Here it starts with the stem, the first convolution's map at half
    the image's size, as in every other family. So methods that pair stages one by one (AT, OFD, NST, VID) compare one
    stage more than in MDistiller, and a hint layer is counted from the stem. MDistiller's `model` ends in an average
    pooling of a fixed size; it has no weights and is omitted here.

    Args:
        pretrained: must be `False`; no weights are released.
        num_classes: number of outputs of the classifier.
    """

    def __init__(self, pretrained: bool = False, num_classes: int = 1000) -> None:
        super().__init__()
        units = [nn.Sequential(conv(3, STEM_CHANNELS, 3, stride=2), nn.BatchNorm2d(STEM_CHANNELS), nn.ReLU())]
        channels = STEM_CHANNELS
        self.stage_channels = [STEM_CHANNELS]
        for index, (out_channels, stride) in enumerate(UNITS, start=1):
            units.append(separable(channels, out_channels, stride))
            channels = out_channels
            if index in STAGE_ENDS:
                self.stage_channels.append(channels)
        self.model = nn.Sequential(*units)
        self.fc = nn.Linear(channels, num_classes)
        if pretrained:
            with_released_weights(self, "MobileNetV1")

    def forward_stages(self, image: Tensor) -> Stages:
        feats: List[Tensor] = []
        preacts: List[Tensor] = []
        x = image
        for index, unit in enumerate(self.model.children()):
            if index not in (0, *STAGE_ENDS):
                x = unit(x)
                continue
            for layer in list(unit.children())[:-1]:  # all but the ReLU
                x = layer(x)
            preacts.append(x)
            x = F.relu(x)
            feats.append(x)
        return Stages(feats, preacts, final_map=x)

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        return [as_batch_norm([*self.model[end].children()][-2]) for end in STAGE_ENDS]
