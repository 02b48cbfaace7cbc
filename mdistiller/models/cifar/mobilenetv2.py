"""MobileNetV2 at half width, for small images.

Source: "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018); strides and ReLU (instead of ReLU6) as in
"Contrastive Representation Distillation" (2020). Shapes: `B` batch, `C` channels, `H`/`W` pixels.
"""

from __future__ import annotations

from typing import List

from torch import Tensor, nn

from .._blocks import as_batch_norm, conv, init_he
from .._contract import ClassifierModel, Stages

# expansion (None: that of the model), output channels at full width, number of units, stride of the first unit
SETTINGS = (
    (1, 16, 1, 1),
    (None, 24, 2, 1),
    (None, 32, 3, 2),
    (None, 64, 4, 2),
    (None, 96, 3, 1),
    (None, 160, 3, 2),
    (None, 320, 1, 1),
)
STAGE_ENDS = (1, 2, 4, 6)  # the blocks whose outputs are in `feats`
POOLED_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; with a residual connection if the shape is unchanged."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            conv(in_channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv(hidden, hidden, 3, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map a linear bottleneck `[B, C, H, W]` to the next one, `[B, C', H', W']`."""
        out = self.conv(x)
        return out + x if self.has_residual else out


class MobileNetV2(ClassifierModel):
    """A MobileNetV2.

    The stages end in linear bottlenecks, so their `preact_feats` and `feats` are the same tensors. A 1x1 convolution
    follows the final map, so the pooled feature has more channels than the map.

    Args:
        num_classes: number of outputs of the classifier.
        expansion: hidden channels of a unit per input channel (`T` in the published code).
        width: factor on the channels of the stem and the bottlenecks.
    """

    classifier_name = "classifier.0"

    def __init__(self, num_classes: int = 100, expansion: int = 6, width: float = 0.5) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(conv(3, channels, 3, stride=2), nn.BatchNorm2d(channels), nn.ReLU())
        self.stage_channels = [channels]
        self.blocks = nn.ModuleList()
        for block, (block_expansion, full_width, num_units, stride) in enumerate(SETTINGS):
            units = []
            for index in range(num_units):
                out_channels = int(full_width * width)
                unit_stride = stride if index == 0 else 1
                units.append(InvertedResidual(channels, out_channels, unit_stride, block_expansion or expansion))
                channels = out_channels
            self.blocks.append(nn.Sequential(*units))
            if block in STAGE_ENDS:
                self.stage_channels.append(channels)
        self.conv2 = nn.Sequential(conv(channels, POOLED_CHANNELS, 1), nn.BatchNorm2d(POOLED_CHANNELS), nn.ReLU())
        linear = nn.Linear(POOLED_CHANNELS, num_classes)
        self.classifier = nn.Sequential(linear)
        init_he(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward_stages(self, image: Tensor) -> Stages:
        convolution, norm, relu = self.conv1
        stem = norm(convolution(image))
        x = relu(stem)
        feats = [x]
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in STAGE_ENDS:
                feats.append(x)
        return Stages(feats, [stem, *feats[1:]], final_map=x)

    def forward_map(self, final_map: Tensor) -> Tensor:
        return self.conv2(final_map)

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        """Return the last BatchNorm of each stage; no ReLU follows it in this model."""
        return [as_batch_norm([*self.blocks[end].modules()][-1]) for end in STAGE_ENDS]
