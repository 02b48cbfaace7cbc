"""RKD: "Relational Knowledge Distillation" (2019).

Shapes: `B` batch, `C_s`/`C_t` channels of the pooled features.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..distributed import gather_with_grad
from ..models._adapt import require_output
from ..ranges import above, at_least, weights
from ._base import Distiller, register


def relative_distances(difference: Tensor, squared: bool, eps: float) -> Tensor:
    """Return the distances `[B, B]` divided by their mean, from the pairwise `difference [B, B, C]`.

    The diagonal is 0 and is excluded from the mean.

    Args:
        difference: the pairwise differences, `[B, B, C]`, float32.
        squared: whether to use squared distances.
        eps: the least squared distance, greater than 0.
    """
    distance = difference.square().sum(2).clamp(min=eps)
    if not squared:
        distance = distance.sqrt()
    diagonal = torch.eye(len(distance), dtype=torch.bool, device=distance.device)
    distance = distance.masked_fill(diagonal, 0)
    # a batch of one has no pairs; max avoids 0 / 0
    mean = distance.sum() / max(len(distance) * (len(distance) - 1), 1)
    return distance / mean.clamp(min=eps)


def angles(difference: Tensor) -> Tensor:
    """Return `[B, B, B]`; entry `i, j, k` is the cosine of the angle at image `i` between the lines to `j` and `k`."""
    length = torch.linalg.vector_norm(difference, dim=2, keepdim=True)
    # two images with the same feature have no direction; dividing by 1 gives 0 and a finite gradient
    direction = difference / length.masked_fill(length == 0, 1)
    return direction @ direction.transpose(1, 2)


def rkd_loss(
    feat_student: Tensor,
    feat_teacher: Tensor,
    squared: bool = False,
    eps: float = 1e-12,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Tensor:
    """Return the scalar weighted sum of the smooth L1 losses of relative distances and of angles.

    Args:
        feat_student: the student's features, `[B, C_s]`, floating point.
        feat_teacher: the teacher's features, `[B, C_t]`, floating point.
        squared: whether to use squared distances.
        eps: the least squared distance, greater than 0.
        distance_weight: weight of the distance loss.
        angle_weight: weight of the angle loss.
    """
    with torch.autocast(feat_student.device.type, enabled=False):
        # not from the Gram matrix, whose rounding errors are as large as the distances of nearly equal features
        student, teacher = (feat[None] - feat[:, None] for feat in (feat_student.float(), feat_teacher.float()))
        loss_distance = F.smooth_l1_loss(
            relative_distances(student, squared, eps), relative_distances(teacher, squared, eps)
        )
        loss_angle = F.smooth_l1_loss(angles(student), angles(teacher))
        return distance_weight * loss_distance + angle_weight * loss_angle


@register("RKD")
class RKD(Distiller):
    """Cross-entropy with the labels plus `rkd_loss` of the pooled features."""

    DEFAULTS = {
        "DISTANCE_WEIGHT": 25.0,  # weight of the distance loss
        "ANGLE_WEIGHT": 50.0,  # weight of the angle loss
        "PDIST": {
            "EPSILON": 1e-12,  # lower limit of squared distances
            "SQUARED": False,  # compare squared distances
        },
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
    }
    RANGES = {
        "PDIST.EPSILON": above(0, example=" (1e-12 is the default)"),
        **dict.fromkeys(("DISTANCE_WEIGHT", "ANGLE_WEIGHT"), at_least(0)),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("pooled",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(RKD, cfg)
        require_output("pooled_feat", student, teacher)
        self.distance_weight = options.DISTANCE_WEIGHT
        self.angle_weight = options.ANGLE_WEIGHT
        self.squared = options.PDIST.SQUARED
        self.eps = options.PDIST.EPSILON
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        student, teacher = gather_with_grad(feats_student["pooled_feat"], feats_teacher["pooled_feat"])
        loss_feat = rkd_loss(student, teacher, self.squared, self.eps, self.distance_weight, self.angle_weight)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * loss_feat,
        }
