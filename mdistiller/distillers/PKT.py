"""PKT: "Learning Deep Representations with Probabilistic Knowledge Transfer" (2018).

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
from ..ranges import weights
from ._base import Distiller, register


def neighbor_probabilities(feat: Tensor, eps: float) -> Tensor:
    """Return `[B, B]`: the cosine similarities of the rows of `feat [B, C]`, shifted to [0, 1], with row sums of 1."""
    # clamped, because the root's gradient is infinite for an all-zero feature
    length = feat.square().sum(1, keepdim=True).clamp(min=torch.finfo(feat.dtype).tiny).sqrt()
    feat = feat / (length + eps)
    similarity = (feat @ feat.t() + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def pkt_loss(feat_student: Tensor, feat_teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the scalar mean of `t · log((t + eps) / (s + eps))` over the `B²` neighbor probabilities `s`, `t`.

    Args:
        feat_student: the student's features, `[B, C_s]`, floating point.
        feat_teacher: the teacher's features, `[B, C_t]`, floating point.
        eps: a small number that keeps the quotients finite.
    """
    with torch.autocast(feat_student.device.type, enabled=False):
        student, teacher = (neighbor_probabilities(feat.float(), eps) for feat in (feat_student, feat_teacher))
        return (teacher * ((teacher + eps) / (student + eps)).log()).mean()


@register("PKT")
class PKT(Distiller):
    """Cross-entropy with the labels plus `pkt_loss` of the pooled features."""

    DEFAULTS = {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 30000.0}}
    RANGES = weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT")
    teacher_needs = ("pooled",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(PKT, cfg)
        require_output("pooled_feat", student, teacher)
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        student, teacher = gather_with_grad(feats_student["pooled_feat"], feats_teacher["pooled_feat"])
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * pkt_loss(student, teacher),
        }
