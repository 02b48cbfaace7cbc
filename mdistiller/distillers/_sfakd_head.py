"""SFAKD's head: spatial branch, fusion, bottleneck projector. Its frequency branch is in `_spectral.py`.

Shapes: `B` batch, `C_s`/`C_t` channels of the student's final map / of the teacher's pooled feature, `H`/`W` height and
width of the student's final map, `N` classes.
"""

from __future__ import annotations

from typing import List, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ._spectral import FrequencyBranch
from .heads import Head, HeadOutput, head_dict


class SpatialBranch(nn.Conv2d):
    """`F_spat = Conv1×1(F)`, `C_s → C_s`, with bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=1)

    def forward(self, feature: Tensor, weight: Union[float, Tensor] = 1.0) -> Tensor:
        """Return `weight · F_spat` of `feature [B, C_s, H, W]`, of the same shape."""
        assert self.bias is not None
        return F.conv2d(feature, weight * self.weight, weight * self.bias)


class Fusion(nn.Module):
    """`A = α · F_freq + β · F_spat`; both weights start at 0.5.

    Args:
        frequency: the branch that computes `F_freq`; `None` to omit it.
        spatial: the branch that computes `F_spat`; `None` to omit it.
        learnable: whether the weights are parameters. Otherwise they are buffers, which stay 0.5.
    """

    alpha: Optional[Tensor]
    beta: Optional[Tensor]

    def __init__(self, frequency: Optional[nn.Module], spatial: Optional[nn.Module], learnable: bool = True) -> None:
        super().__init__()
        self.frequency = frequency
        self.spatial = spatial
        for name, branch in (("alpha", frequency), ("beta", spatial)):
            weight = None if branch is None else torch.tensor(0.5)
            if learnable:
                self.register_parameter(name, None if weight is None else nn.Parameter(weight))
            else:
                self.register_buffer(name, weight)

    def forward(self, feature: Tensor) -> Tensor:
        """Return `A` for `feature [B, C_s, H, W]`, of the same shape."""
        # each branch applies its weight to its parameters, which are smaller than the maps
        branches = ((self.spatial, self.beta), (self.frequency, self.alpha))
        parts = [branch(feature, weight) for branch, weight in branches if branch is not None]
        return sum(parts[1:], parts[0])


class BottleneckProjector(nn.Sequential):
    """Adaptive bottleneck `C_s → m → C_t`, `m = ⌊(C_s + C_t) / 2⌋`, with a 3×3 convolution of `m` channels.

    Args:
        in_channels, out_channels: the numbers of channels of the input and of the output, `C_s` and `C_t`.
        kind: the kind of convolution. "separable": depthwise 3×3, then pointwise. "full": one full 3×3 convolution.
        relu: whether it ends in a ReLU, which keeps the output from being negative.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: str = "separable", relu: bool = True) -> None:
        mid = (in_channels + out_channels) // 2
        super().__init__(
            nn.Conv2d(in_channels, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            *self._convolution(mid, kind),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            *([nn.ReLU(inplace=True)] if relu else []),
        )

    @staticmethod
    def _convolution(channels: int, kind: str) -> List[nn.Module]:
        if kind == "full":
            return [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        return [
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
        ]


@head_dict.register("SFAKD")
class SFAKDHead(Head):
    """Fusion of the two branches, bottleneck projector, pooling and the teacher's classifier.

    Args:
        in_channels, height, width: `C_s`, `H`, `W` of the student's final map.
        out_channels, num_classes, bias: `C_t`, `N` and bias of the teacher's classifier.
        sigma, learnable_sigma, mask: see `HighPass`; `mask` is its `kind`.
        frequency, spatial: whether to use each branch; at least one.
        filter_init: see `FrequencyFilter`.
        fusion: "learned" or "fixed", the weights of the branches; see `Fusion`.
        projector: see `BottleneckProjector`; its `kind`.
        relu: whether the projector ends in a ReLU.
    """

    kind = "SFAKD"

    def __init__(
        self,
        in_channels: int,
        height: int,
        width: int,
        out_channels: int,
        num_classes: int,
        bias: bool = True,
        sigma: float = 0.1,
        learnable_sigma: bool = False,
        frequency: bool = True,
        spatial: bool = True,
        mask: str = "gaussian",
        filter_init: str = "identity",
        fusion: str = "learned",
        projector: str = "separable",
        relu: bool = True,
    ) -> None:
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        fused = Fusion(
            FrequencyBranch(in_channels, height, width, sigma, learnable_sigma, mask, filter_init)
            if frequency
            else None,
            SpatialBranch(in_channels) if spatial else None,
            learnable=fusion == "learned",
        )
        layers = nn.Sequential()
        layers.add_module("fusion", fused)
        layers.add_module("bottleneck", BottleneckProjector(in_channels, out_channels, projector, relu))
        super().__init__(layers, out_channels, num_classes, bias, options)
        self.map_size = (height, width)

    def forward(self, final_map: Tensor) -> HeadOutput:
        if tuple(final_map.shape[-2:]) != self.map_size:
            raise UserError(
                f"the student's final map is {tuple(final_map.shape[-2:])}, this SFAKD head was built for"
                f" {self.map_size}: its filter has one weight per frequency; give images of the size it was trained on"
            )
        return super().forward(final_map)
