"""MobileNetV2 at full width, as MDistiller trains it on Tiny-ImageNet.

It differs from the CIFAR-100 model (`mobilenetv2.py`) in width, strides and activation (ReLU6), and its convolutions
have biases. Source: "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018); layers, strides and `state_dict`
keys as in MDistiller's Tiny-ImageNet models. Shapes: `B` batch, `C` channels, `H`/`W` pixels, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, List

from torch import Tensor, nn

from .._blocks import as_batch_norm
from .._contract import ClassifierModel, Stages

EXPANSION = 6  # hidden channels of a unit per input channel
POOLED_CHANNELS = 1280


class LinearBottleneck(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; with a residual connection if the shape is unchanged."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = EXPANSION) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_residual = stride == 1 and in_channels == out_channels
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map a linear bottleneck `[B, C, H, W]` to the next one, `[B, C', H', W']`."""
        out = self.residual(x)
        return out + x if self.has_residual else out


def _stage(num_units: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a stage whose first unit changes the channels and the size."""
    units = [LinearBottleneck(in_channels, out_channels, stride)]
    units += [LinearBottleneck(out_channels, out_channels) for _ in range(num_units - 1)]
    return nn.Sequential(*units)


class PointwiseLinear(nn.Linear):
    """A linear layer that is stored in a state dict as a 1x1 convolution.

    The parameter is `[N, C]`, so that all code for linear layers applies. The entry `weight` of a state dict is
    `[N, C, 1, 1]`, as in MDistiller's checkpoints. `load_state_dict` takes both shapes.
    """

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"][:, :, None, None]

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.shape[2:] == (1, 1):
            state_dict[f"{prefix}weight"] = weight.flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class FullMobileNetV2(ClassifierModel):
    """A MobileNetV2 at full width; 2,497,480 parameters for 200 classes.

    The stem's 1x1 convolution pads the image, so its map is 2 pixels larger than the image. The maps in `feats` are
    those of the stem and of stages 2, 3 and 4, and the final map. The three stages are linear, so their `preact_feats`
    are the same tensors.

    Args:
        num_classes: number of outputs of the classifier.
    """

    classifier_name = "conv2"

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(3, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        self.stage1 = LinearBottleneck(32, 16, expansion=1)
        self.stage2 = _stage(2, 16, 24, stride=2)
        self.stage3 = _stage(3, 24, 32, stride=2)
        self.stage4 = _stage(4, 32, 64, stride=2)
        self.stage5 = _stage(3, 64, 96, stride=1)
        self.stage6 = _stage(3, 96, 160, stride=1)
        self.stage7 = LinearBottleneck(160, 320)
        self.conv1 = nn.Sequential(nn.Conv2d(320, POOLED_CHANNELS, 1), nn.BatchNorm2d(POOLED_CHANNELS), nn.ReLU6())
        self.conv2 = PointwiseLinear(POOLED_CHANNELS, num_classes)
        self.stage_channels = [32, 24, 32, 64, POOLED_CHANNELS]

    def forward_stages(self, image: Tensor) -> Stages:
        convolution, norm, relu6 = self.pre
        stem = norm(convolution(image))
        feats, preacts = [relu6(stem)], [stem]
        x = self.stage1(feats[0])
        for stage in (self.stage2, self.stage3, self.stage4):
            x = stage(x)
            feats.append(x)
            preacts.append(x)
        convolution, norm, relu6 = self.conv1
        final = norm(convolution(self.stage7(self.stage6(self.stage5(x)))))
        feats.append(relu6(final))
        return Stages(feats, [*preacts, final], final_map=feats[-1])

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        """Return the last BatchNorms of stages 2, 3 and 4, which no ReLU follows, and that of the final map."""
        ends = [[*stage.modules()][-1] for stage in (self.stage2, self.stage3, self.stage4)]
        return [as_batch_norm(norm) for norm in (*ends, self.conv1[1])]
