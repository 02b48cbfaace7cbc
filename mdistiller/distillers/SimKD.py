"""SimKD: "Knowledge Distillation with the Reused Teacher Classifier" (2022).

The student's final map is projected into the teacher's feature space and classified by the teacher's frozen classifier.
Backbone and projector learn to reproduce the teacher's final map, without labels. The method does not use the student's
own classifier. It is trained as a probe on detached features, so that the bare student is a working model too.

Shapes: `B` batch, `C_s`/`C_t` channels of the student's / teacher's final map, `H`/`W` height and width of a map, `N`
classes.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..ranges import YES_NO_OR_NONE, at_least, weights
from ._base import Distiller, register
from ._common import blank_outputs, image_size, match_size, pooled_to
from .heads import Head, HeadOutput, check_teacher_map, ends_in_relu, head_dict, own_logits, split_forward


def simkd_loss(projected: Tensor, map_teacher: Tensor) -> Tensor:
    """Return the scalar mean squared error of two maps.

    Args:
        projected: the student's projected map, `[B, C_t, H_s, W_s]`, floating point.
        map_teacher: the teacher's map, `[B, C_t, H_t, W_t]`, floating point. The larger map is average-pooled to the
            size of the smaller.
    """
    return F.mse_loss(*match_size(projected.float(), map_teacher.float()))


class Projector(nn.Sequential):
    """Bottleneck `C_s → C_t / factor → C_t` of 1×1, 3×3 and 1×1 convolutions, each with BatchNorm and ReLU.

    `relu` is whether the last ReLU is there, which keeps the output from being negative.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int, relu: bool = True) -> None:
        mid = out_channels // factor
        super().__init__(
            nn.Conv2d(in_channels, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, padding=1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            *([nn.ReLU(inplace=True)] if relu else []),
        )


@head_dict.register("SIMKD")
class SimKDHead(Head):
    """Pooling of a larger map to the teacher's size, projector, global pooling and the teacher's classifier.

    Args:
        in_channels: the number of channels of the student's final map, `C_s`.
        height, width: the size of the teacher's final map.
        out_channels, num_classes, bias: `C_t`, `N` and bias of the teacher's classifier.
        factor: the divisor that gives the projector's inner width, `C_t / factor`.
        relu: whether the projector ends in a ReLU.
    """

    kind = "SIMKD"

    def __init__(
        self,
        in_channels: int,
        height: int,
        width: int,
        out_channels: int,
        num_classes: int,
        bias: bool = True,
        factor: int = 2,
        relu: bool = True,
    ) -> None:
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        projector = Projector(in_channels, out_channels, factor, relu)
        super().__init__(projector, out_channels, num_classes, bias, options)
        self.max_size = (height, width)

    def forward(self, final_map: Tensor) -> HeadOutput:
        # int, because the sizes are tensors while a network is traced, and pooling needs constants then
        height, width = (min(int(side), max_side) for side, max_side in zip(final_map.shape[-2:], self.max_size))
        return super().forward(pooled_to(final_map, height, width))


@register("SIMKD")
class SimKD(Distiller):
    """`simkd_loss` of the final maps; the deployed student is backbone, projector and the teacher's classifier."""

    DEFAULTS = {
        "FEAT_WEIGHT": 1.0,
        "FACTOR": 2,  # the projector's inner width is the teacher's channels divided by FACTOR
        "PROJECTOR_RELU": None,  # end the projector in a ReLU; None: yes, unless the teacher's map can be negative
    }
    RANGES = {"FACTOR": at_least(1), "PROJECTOR_RELU": YES_NO_OR_NONE, **weights("FEAT_WEIGHT")}
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    head: Head

    def __init__(self, student: nn.Module, teacher: Any, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(SimKD, cfg)
        input_size = image_size(cfg)
        channels, height, width = check_teacher_map("SIMKD", teacher, input_size, remedy="use SFAKD")
        factor = options.FACTOR
        if factor > channels:
            raise UserError(f"SIMKD.FACTOR is {factor}; expected 1 to {channels}, the teacher's channels")
        self.feat_weight = options.FEAT_WEIGHT
        self.head = SimKDHead.with_classifier(
            teacher.get_classifier(),
            in_channels=blank_outputs(student, input_size)[1]["final_map"].shape[1],
            height=height,
            width=width,
            factor=factor,
            relu=ends_in_relu(options.PROJECTOR_RELU, teacher, input_size, "final_map"),
        )

    @classmethod
    def loss_names(cls, options: Any) -> Tuple[str, ...]:
        return "loss_feat", "loss_probe"

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        final_map, pooled = split_forward(self.student, image)
        output = self.head(final_map)
        own = own_logits(self.student, final_map, pooled)
        return output.logits, {
            "loss_feat": self.feat_weight * simkd_loss(output.projected, feats_teacher["final_map"]),
            "loss_probe": F.cross_entropy(own.float(), target),
        }
