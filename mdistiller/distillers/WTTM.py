"""WTTM: "Knowledge Distillation Based on Transformed Teacher Matching" (2024).

The temperature applies only to the teacher. The student's prediction `q` at temperature 1 learns to match the power
transform of the teacher's prediction, `p_T ∝ p^γ` with `γ = 1 / T`. So there is no factor `T²`. Each image is weighted
by the power sum `U = Σ p^γ`, which is large if the teacher is uncertain.

The authors choose temperature and weight for each pair, but publish only those of VGG13 → VGG8
(`configs/cifar100/ttm` and `wttm`). The defaults below are ours; tune them for other pairs.

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import above, weights
from ._base import Distiller, register


def power_sum(logits_teacher: Tensor, temperature: float) -> Tensor:
    """Return `U = Σ_j p_j^(1/T)`, `[B]`, float32, where `p = softmax(logits_teacher)` and `logits_teacher` is `[B, N]`.

    `U` is 1 if one class has probability 1, and `N^(1 − 1/T)` if all classes are equally probable.
    """
    logits = logits_teacher.float()
    # from the logits, because probabilities that underflow to 0 would be missing in the sum
    return torch.exp(torch.logsumexp(logits / temperature, dim=1) - torch.logsumexp(logits, dim=1) / temperature)


def ttm_loss(logits_student: Tensor, logits_teacher: Tensor, temperature: float, weighted: bool = True) -> Tensor:
    """Return the scalar `mean over images of U · KL(softmax(teacher / T) ‖ softmax(student))`.

    Args:
        logits_student: the student's logits, `[B, N]`, floating point.
        logits_teacher: the teacher's logits, `[B, N]`, floating point.
        temperature: the temperature `T > 0`.
        weighted: whether to weight images by `power_sum` (WTTM); otherwise `U = 1` (TTM).
    """
    log_student = F.log_softmax(logits_student.float(), dim=1)
    log_teacher = F.log_softmax(logits_teacher.float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    if weighted:
        divergence = divergence * power_sum(logits_teacher, temperature)
    return divergence.mean()


@register("WTTM")
class WTTM(Distiller):
    """Cross-entropy with the labels plus `ttm_loss` with the teacher's logits."""

    DEFAULTS = {
        "TEMPERATURE": 4.0,  # temperature of the teacher, 1 / γ in the paper
        "CE_WEIGHT": 1.0,
        "KD_WEIGHT": 1.0,  # weight of the distillation loss, β in the paper
        "WEIGHTED": True,  # WTTM; False: TTM
    }
    RANGES = {"TEMPERATURE": above(0), **weights("CE_WEIGHT", "KD_WEIGHT")}
    teacher_needs = ("logits",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(WTTM, cfg)
        self.temperature = options.TEMPERATURE
        self.ce_weight = options.CE_WEIGHT
        self.kd_weight = options.KD_WEIGHT
        self.weighted = options.WEIGHTED

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss_kd = ttm_loss(logits_student, logits_teacher, self.temperature, self.weighted)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.kd_weight * loss_kd,
        }
