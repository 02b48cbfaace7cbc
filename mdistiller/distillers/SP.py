"""SP: "Similarity-Preserving Knowledge Distillation" (2019).

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` height and width of a stage map.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..distributed import gather_with_grad
from ..models._adapt import require_output
from ..ranges import weights
from ._base import Distiller, register


def batch_similarity(feat: Tensor) -> Tensor:
    """Return the dot products `[B, B]` of the images' features `feat [B, ...]`, with rows scaled to unit length."""
    flat = feat.flatten(1)
    return F.normalize(flat @ flat.t())


def sp_loss(feats_student: Sequence[Tensor], feats_teacher: Sequence[Tensor]) -> Tensor:
    """Return the scalar mean squared difference of the similarities of all `B²` pairs of images, summed over layers.

    Args:
        feats_student: the student's maps, `[B, C_s, H_s, W_s]` for each layer, floating point.
        feats_teacher: the teacher's maps, `[B, C_t, H_t, W_t]` each, floating point; sizes and channels may differ.
    """
    losses = []
    for student, teacher in zip(feats_student, feats_teacher):
        with torch.autocast(student.device.type, enabled=False):
            difference = batch_similarity(teacher.float()) - batch_similarity(student.float())
            losses.append(difference.square().mean())
    return torch.stack(losses).sum()


@register("SP")
class SP(Distiller):
    """Cross-entropy with the labels plus `sp_loss` of the last map in `feats`."""

    DEFAULTS = {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 3000.0}}
    RANGES = weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT")
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(SP, cfg)
        require_output("feats", student, teacher)
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        student, teacher = gather_with_grad(feats_student["feats"][-1], feats_teacher["feats"][-1])
        loss_feat = sp_loss([student], [teacher])
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * loss_feat,
        }
