"""KD: "Distilling the Knowledge in a Neural Network" (2015).

`KD.LOGIT_STAND` is LSKD: "Logit Standardization in Knowledge Distillation" (2024).

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import above, weights
from ._base import Distiller, register
from ._common import standardize_logits


def kd_loss(
    logits_student: Tensor, logits_teacher: Tensor, temperature: Union[float, Tensor], logit_stand: bool = False
) -> Tensor:
    """Return the scalar `T² · KL(softmax(teacher / T) ‖ softmax(student / T))`, averaged over the batch.

    Args:
        logits_student: the student's logits, `[B, N]`, floating point.
        logits_teacher: the teacher's logits, `[B, N]`, floating point.
        temperature: the temperature `T > 0`, a float or a scalar tensor; a tensor gets a gradient. The factor `T²`
            keeps the scale of the logits' gradients when `T` changes.
        logit_stand: whether to standardize the logits first; see `standardize_logits`.
    """
    if logit_stand:
        logits_student, logits_teacher = standardize_logits(logits_student), standardize_logits(logits_teacher)
    log_student = F.log_softmax(logits_student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(logits_teacher.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


@register("KD")
class KD(Distiller):
    """Cross-entropy with the labels plus `kd_loss` with the teacher's logits."""

    DEFAULTS = {
        "TEMPERATURE": 4.0,
        "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9},
        "LOGIT_STAND": False,  # LSKD: standardized logits; published values: configs/cifar100/kd_lskd
    }
    RANGES = {"TEMPERATURE": above(0), **weights("LOSS.CE_WEIGHT", "LOSS.KD_WEIGHT")}
    teacher_needs = ("logits",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(KD, cfg)
        self.temperature = options.TEMPERATURE
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.kd_weight = options.LOSS.KD_WEIGHT
        self.logit_stand = options.LOGIT_STAND

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss = kd_loss(logits_student, logits_teacher, self.temperature, self.logit_stand)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.kd_weight * loss,
        }
