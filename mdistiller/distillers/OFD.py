"""OFD: "A Comprehensive Overhaul of Feature Distillation" (2019).

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` pixels of a stage map.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..ranges import at_least, weights
from ._base import Distiller, register
from ._common import stage_shapes

RARELY_NEGATIVE = 0.001  # probability below which the mean of the negative part is not computed
FAR_BELOW = 3.0  # standard deviations, the margin there


def negative_mean(mean: Tensor, std: Tensor) -> Tensor:
    """Return `E[x | x < 0]` of Gaussians, `-3 std` for those that are negative with a probability below 0.001.

    Args:
        mean: `[C_t]`, a BatchNorm's bias.
        std: `[C_t]`, its weight; the sign does not matter.
    """
    # a pruned channel has a deviation of 0; so small a one has the same limits without dividing by it
    mean, std = mean.double(), std.double().abs().clamp(min=1e-12)
    ratio = mean / std
    probability = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    expected = mean - std * density / probability.clamp(min=RARELY_NEGATIVE)
    return torch.where(probability > RARELY_NEGATIVE, expected, -FAR_BELOW * std).float()


def ofd_loss(map_student: Tensor, map_teacher: Tensor, margin: Tensor) -> Tensor:
    """Return the scalar partial L2 distance of two maps before their ReLU: a sum, but a mean over the batch.

    The teacher's map is raised to `margin` where it is below (margin ReLU). Where the result is not positive, a student
    below it is left alone.

    Args:
        map_student: `[B, C_t, H, W]`, floating point, after the connector.
        map_teacher: `[B, C_t, H_t, W_t]`, floating point; average-pooled (or repeated) to the student's size.
        margin: `[1, C_t, 1, 1]`, not positive.
    """
    student, teacher = map_student.float(), map_teacher.float()
    height, width = student.shape[-2:]
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = F.adaptive_avg_pool2d(teacher, (height, width))
    teacher = torch.maximum(teacher, margin)
    counts = (student > teacher) | (teacher > 0)
    return ((student - teacher).square() * counts).sum() / len(student)


def make_connector(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution without bias, drawn from N(0, 2 / (k · k · out_channels)), and BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


@register("OFD")
class OFD(Distiller):
    """Cross-entropy with the labels plus `ofd_loss` of the stages after the stem, halved with each stage from the last.

    Stages pair up from the last one backwards, as in MDistiller: of a model that has more of them, the first have no
    partner. The margins are computed once, from the teacher's BatchNorms, and are moved and saved with the rest.

    The published recipe, and MDistiller's, runs the teacher in training mode: batch statistics in its BatchNorms, whose
    running statistics move. `TEACHER_TRAIN_MODE: True` does the same; the default is the teacher as it was trained.
    """

    DEFAULTS = {
        "TEACHER_TRAIN_MODE": False,
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.001},
        "CONNECTOR": {"KERNEL_SIZE": 1},
    }
    RANGES = {
        "CONNECTOR.KERNEL_SIZE": at_least(1, "pixel", " (1 is the default)"),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("maps",)

    def __init__(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        super().__init__(student, teacher)
        options = cfg.OFD
        self.teacher_train_mode = options.TEACHER_TRAIN_MODE
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        kernel_size = options.CONNECTOR.KERNEL_SIZE
        size = cfg.DATASET.INPUT_SIZE
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
                " give it that method, or use a method that reads maps alone (AT, FITNET)"
            )
        self.num_stages = min(len(channels_student), len(channels_teacher))
        pairs = zip(channels_student[-self.num_stages :], channels_teacher[-self.num_stages :])
        self.connectors = nn.ModuleList(make_connector(s, t, kernel_size) for s, t in pairs)
        for stage, norm in enumerate(norms[-self.num_stages :]):
            margin = negative_mean(norm.bias.detach(), norm.weight.detach())
            self.register_buffer(f"margin_{stage}", margin.view(1, -1, 1, 1))

    @property
    def margins(self) -> List[Tensor]:
        """The margins `[1, C_t, 1, 1]` of the stages that are compared."""
        return [self.get_buffer(f"margin_{stage}") for stage in range(self.num_stages)]

    def train(self, mode: bool = True) -> OFD:
        super().train(mode)
        if self.teacher_train_mode:
            self.teacher.train(mode)
        return self

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.connectors.parameters())

    def get_extra_parameters(self) -> int:
        return sum(p.numel() for p in self.connectors.parameters())

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
