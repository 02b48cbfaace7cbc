"""OFD: "A Comprehensive Overhaul of Feature Distillation" (2019).

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` height and width of a stage map.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..ranges import at_least, weights
from ._base import Distiller, register
from ._common import image_size, stage_shapes

MIN_NEGATIVE_PROBABILITY = 0.001  # channels that are negative less often get FALLBACK_MARGIN
FALLBACK_MARGIN = 3.0  # standard deviations below 0


def negative_mean(mean: Tensor, std: Tensor) -> Tensor:
    """Return the float32 `E[x | x < 0]` of Gaussians, or `-3 std` if the probability of `x < 0` is below 0.001.

    Args:
        mean: a BatchNorm's bias, `[C_t]`.
        std: its weight, `[C_t]`; the sign does not matter.
    """
    # the deviation of a pruned channel is 0; clamping avoids a division by 0 and gives the same limit
    mean, std = mean.double(), std.double().abs().clamp(min=1e-12)
    ratio = mean / std
    probability = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    expected = mean - std * density / probability.clamp(min=MIN_NEGATIVE_PROBABILITY)
    return torch.where(probability > MIN_NEGATIVE_PROBABILITY, expected, -FALLBACK_MARGIN * std).float()


def ofd_loss(map_student: Tensor, map_teacher: Tensor, margin: Tensor) -> Tensor:
    """Return the scalar partial squared L2 distance of two maps before their ReLU.

    It is summed over channels and positions, and averaged over the batch.

    Teacher values below `margin` are raised to it (margin ReLU). Where the teacher's value is then not positive, a
    student's value below it adds nothing to the loss.

    Args:
        map_student: the student's map, `[B, C_t, H, W]`, floating point, the output of the connector.
        map_teacher: the teacher's map, `[B, C_t, H_t, W_t]`, floating point; average-pooled (or repeated) to the
            student's size.
        margin: the margin of each channel, `[1, C_t, 1, 1]`, at most 0.
    """
    student, teacher = map_student.float(), map_teacher.float()
    height, width = student.shape[-2:]
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = F.adaptive_avg_pool2d(teacher, (height, width))
    teacher = torch.maximum(teacher, margin)
    counts = (student > teacher) | (teacher > 0)
    return ((student - teacher).square() * counts).sum() / len(student)


def make_connector(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution without bias, initialized from N(0, 2 / (k · k · out_channels)), and a BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


@register("OFD")
class OFD(Distiller):
    """Cross-entropy with the labels plus `ofd_loss` of the stages after the stem.

    The last stage has weight 1; each earlier stage has half the weight of the next one. Stages are paired from the last
    one backwards, as in MDistiller. If one model has more stages, its first are not used. The margins are computed once
    from the teacher's BatchNorms; they are buffers.

    The published recipe and MDistiller run the teacher in training mode: its BatchNorms use batch statistics and update
    their running statistics. `TEACHER_TRAIN_MODE: True` does the same. By default the teacher is in evaluation mode.
    """

    DEFAULTS = {
        "TEACHER_TRAIN_MODE": False,  # True: the published recipe, the teacher's BatchNorm in training mode
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.001},
        "CONNECTOR": {"KERNEL_SIZE": 1},  # kernel size of the connector convolutions
    }
    RANGES = {
        "CONNECTOR.KERNEL_SIZE": at_least(1, "pixel", " (1 is the default)"),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: Any, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(OFD, cfg)
        self.teacher_train_mode = options.TEACHER_TRAIN_MODE
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        kernel_size = options.CONNECTOR.KERNEL_SIZE
        size = image_size(cfg)
        channels_student, channels_teacher = (
            [shape[1] for shape in stage_shapes(model, size, "preact_feats")[1:]] for model in (student, teacher)
        )
        try:
            norms = teacher.get_bn_before_relu()
        except NotImplementedError:
            norms = []
        if [norm.num_features for norm in norms] != channels_teacher:
            raise UserError(
                f"OFD needs a BatchNorm for each of the teacher's stages, of {channels_teacher} channels;"
                f" get_bn_before_relu() of this {type(teacher).__name__} gives {[norm.num_features for norm in norms]};"
                " give it that method, or use a method that reads only maps (AT, FITNET)"
            )
        self.num_stages = min(len(channels_student), len(channels_teacher))
        pairs = zip(channels_student[-self.num_stages :], channels_teacher[-self.num_stages :])
        self.connectors = nn.ModuleList(make_connector(s, t, kernel_size) for s, t in pairs)
        for stage, norm in enumerate(norms[-self.num_stages :]):
            margin = negative_mean(norm.bias.detach(), norm.weight.detach())
            self.register_buffer(f"margin_{stage}", margin.view(1, -1, 1, 1))

    @property
    def margins(self) -> List[Tensor]:
        """The margins `[1, C_t, 1, 1]` of the compared stages."""
        return [self.get_buffer(f"margin_{stage}") for stage in range(self.num_stages)]

    def train(self, mode: bool = True) -> OFD:
        super().train(mode)
        if self.teacher_train_mode:
            self.teacher.train(mode)
        return self

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.connectors.parameters())

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        maps = (feats["preact_feats"][-self.num_stages :] for feats in (feats_student, feats_teacher))
        losses = []
        stages = zip(self.connectors, *maps, self.margins)
        for index, (connector, map_student, map_teacher, margin) in enumerate(stages):
            loss = ofd_loss(connector(map_student), map_teacher, margin)
            losses.append(loss / 2 ** (self.num_stages - index - 1))
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * torch.stack(losses).sum(),
        }
