"""NST: "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (2017).

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` height and width of a stage map.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import weights
from ._base import Distiller, register
from ._common import check_stages, match_size


def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar mean of `(a_i · b_j)²` over images and pairs of channels; `a [B, C_a, D]`, `b [B, C_b, D]`.

    `Σ_ij (a_i · b_j)²` equals `⟨AᵀA, BᵀB⟩`; the form with the smaller matrices is computed.
    """
    pairs = a.shape[0] * a.shape[1] * b.shape[1]
    if a.shape[2] < min(a.shape[1], b.shape[1]):
        return ((a.transpose(1, 2) @ a) * (b.transpose(1, 2) @ b)).sum() / pairs
    return (a @ b.transpose(1, 2)).square().sum() / pairs


def nst_loss(feats_student: Sequence[Tensor], feats_teacher: Sequence[Tensor]) -> Tensor:
    """Return the scalar squared maximum mean discrepancy of the channels, summed over the stages.

    Each channel's map, scaled to unit length, is one sample of the student's or the teacher's distribution. The kernel
    is polynomial.

    Args:
        feats_student: the student's maps, `[B, C_s, H_s, W_s]` for each stage, floating point.
        feats_teacher: the teacher's maps, `[B, C_t, H_t, W_t]`. The larger map of a pair is average-pooled to the size
            of the smaller. If one list is longer, its last entries are ignored.
    """
    losses = []
    for pair in zip(feats_student, feats_teacher):
        with torch.autocast(pair[0].device.type, enabled=False):
            matched = match_size(*(feat.float() for feat in pair))
            student, teacher = (F.normalize(feat.flatten(2), dim=2) for feat in matched)
            within = mean_kernel(teacher, teacher) + mean_kernel(student, student)
            losses.append(within - 2 * mean_kernel(student, teacher))
    return torch.stack(losses).sum()


@register("NST")
class NST(Distiller):
    """Cross-entropy with the labels plus `nst_loss` of the stages after the stem.

    Stages are paired from the first one on, as in MDistiller. If one model has more stages, its deepest are not used.
    """

    DEFAULTS = {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 50.0}}
    RANGES = weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT")
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(NST, cfg)
        check_stages(student, teacher)
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        loss_feat = nst_loss(feats_student["feats"][1:], feats_teacher["feats"][1:])
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * loss_feat,
        }
