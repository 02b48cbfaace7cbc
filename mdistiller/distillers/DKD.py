"""DKD: "Decoupled Knowledge Distillation" (2022).

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import above, at_least, weights
from ._base import Distiller, register
from ._common import standardize_logits, warmup_factor

EXCLUDED = 1000.0  # subtracted from the target's logit, so that its probability is 0 in float32


def dkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    logit_stand: bool = False,
) -> Tensor:
    """Return the scalar `T² (alpha · TCKD + beta · NCKD)`, averaged over the batch.

    TCKD compares the probabilities of the target and of all other classes together. NCKD compares the distributions
    among the other classes. Both are divergences `KL(teacher ‖ student)`. KD equals
    `TCKD + (1 − teacher's target probability) · NCKD`.

    Args:
        logits_student, logits_teacher: the logits of the student and of the teacher, `[B, N]`, floating point.
        target: the labels, `[B]`, int64.
        alpha, beta: the weights of TCKD and of NCKD.
        temperature: the temperature `T > 0`.
        logit_stand: whether to standardize the logits first; see `standardize_logits`.
    """
    is_target = F.one_hot(target, logits_student.shape[1])
    groups, others = [], []
    for logits in (logits_student, logits_teacher):
        scaled = (standardize_logits(logits) if logit_stand else logits.float()) / temperature
        log_p = F.log_softmax(scaled, dim=1)
        groups.append(torch.cat([log_p.gather(1, target[:, None]), _log_rest(log_p, is_target)], dim=1))
        others.append(F.log_softmax(scaled - EXCLUDED * is_target, dim=1))
    tckd, nckd = (
        F.kl_div(student, teacher, reduction="batchmean", log_target=True) for student, teacher in (groups, others)
    )
    return (alpha * tckd + beta * nckd) * temperature**2


def _log_rest(log_p: Tensor, is_target: Tensor) -> Tensor:
    """Return `[B, 1]`, the log-probability of all classes except the target; finite even if that rounds to 0."""
    return torch.logsumexp(log_p - EXCLUDED * is_target, dim=1, keepdim=True)


@register("DKD")
class DKD(Distiller):
    """Cross-entropy with the labels plus `dkd_loss` with the teacher's logits, warmed up over `WARMUP` epochs."""

    DEFAULTS = {
        "CE_WEIGHT": 1.0,
        "ALPHA": 1.0,  # weight of the target-class part
        "BETA": 8.0,  # weight of the non-target-class part
        "T": 4.0,  # softmax temperature
        "WARMUP": 20,  # epochs over which the weight of loss_kd rises
        "LOGIT_STAND": False,  # LSKD: standardized logits; published values: configs/cifar100/dkd_lskd
    }
    RANGES = {"T": above(0), "WARMUP": at_least(0), **weights("CE_WEIGHT", "ALPHA", "BETA")}
    teacher_needs = ("logits",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(DKD, cfg)
        self.ce_weight = options.CE_WEIGHT
        self.alpha = options.ALPHA
        self.beta = options.BETA
        self.temperature = options.T
        self.warmup = options.WARMUP
        self.logit_stand = options.LOGIT_STAND

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss = dkd_loss(
            logits_student, logits_teacher, target, self.alpha, self.beta, self.temperature, self.logit_stand
        )
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": warmup_factor(kwargs["epoch"], self.warmup) * loss,
        }
