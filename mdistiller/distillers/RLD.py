"""RLD: "Knowledge Distillation with Refined Logits" (2024; ICCV 2025).

The two losses do not contradict the label when the teacher's prediction is wrong. The sample confidence loss
(`loss_scd`) matches the student's probability of the *label* to the teacher's probability of its *most probable class*.
The masked correlation loss (`loss_mcd`) distills only the classes that the teacher rates below the label; it masks the
label and every class rated at or above it. If the teacher is right, these are the two parts of DKD, "Decoupled
Knowledge Distillation" (2022).

Paper and published code: in the code the sample confidence has its own temperature, 1 by default, but equal to the
other temperature in the authors' example. `ALPHA_TEMPERATURE` is that temperature; `None`, the default, means
`TEMPERATURE`, as in the example. The other defaults are the code's.

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import Range, above, at_least, weights
from ._base import Distiller, register
from ._common import warmup_factor

MASKED = (
    torch.finfo(torch.float32).min / 2
)  # a logit with probability 0; half of the minimum, so that differences stay finite


def sample_confidence_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Return the scalar `T² · KL((b_T, 1 − b_T) ‖ (b_S, 1 − b_S))`, averaged over the batch.

    `b_T` is the teacher's highest probability, `b_S` the student's probability of the label, both at temperature `T`.

    Args:
        logits_student: the student's logits, `[B, N]`, floating point.
        logits_teacher: the teacher's logits, `[B, N]`, floating point.
        target: the labels, `[B]`, int64.
        temperature: the temperature `T > 0`.
    """
    log_student = _log_one_against_rest(logits_student.float() / temperature, target)
    log_teacher = _log_one_against_rest(logits_teacher.float() / temperature, logits_teacher.argmax(1))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def masked_correlation_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Return the scalar `T² · KL(teacher ‖ student)` among the classes that the teacher rates below the label.

    The mean over the batch; an image with no such class counts as 0. Arguments as in `sample_confidence_loss`.
    """
    masked = logits_teacher >= logits_teacher.gather(1, target[:, None])
    log_student, log_teacher = (
        F.log_softmax((logits.float() / temperature).masked_fill(masked, MASKED), dim=1)
        for logits in (logits_student, logits_teacher)
    )
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def _log_one_against_rest(logits: Tensor, index: Tensor) -> Tensor:
    """Return `[B, 2]`: `log p` and `log (1 − p)`, where `p` is the probability of class `index [B]`."""
    one = index[:, None]
    log_total = torch.logsumexp(logits, dim=1, keepdim=True)
    log_rest = torch.logsumexp(logits.scatter(1, one, MASKED), dim=1, keepdim=True)
    return torch.cat([logits.gather(1, one), log_rest], dim=1) - log_total


@register("RLD")
class RLD(Distiller):
    """Cross-entropy with the labels plus both refined losses; `forward_train` needs `epoch`, counted from 1."""

    DEFAULTS = {
        "CE_WEIGHT": 1.0,
        "ALPHA": 1.0,  # weight of the sample confidence
        "BETA": 8.0,  # weight of the masked correlation
        "TEMPERATURE": 4.0,
        "ALPHA_TEMPERATURE": None,  # temperature of the sample confidence; None: TEMPERATURE
        "WARMUP": 20.0,  # epochs over which both weights rise linearly to their values; 0: no warm-up
    }
    needs_all_logits = True
    RANGES = {
        "TEMPERATURE": above(0),
        "ALPHA_TEMPERATURE": Range(lambda t: t is None or t in above(0), "a number above 0, or None for TEMPERATURE"),
        "WARMUP": at_least(0),
        **weights("CE_WEIGHT", "ALPHA", "BETA"),
    }
    teacher_needs = ("logits",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(RLD, cfg)
        self.ce_weight = options.CE_WEIGHT
        self.alpha = options.ALPHA
        self.beta = options.BETA
        self.temperature = options.TEMPERATURE
        alpha_temperature = options.ALPHA_TEMPERATURE
        self.alpha_temperature = self.temperature if alpha_temperature is None else alpha_temperature
        self.warmup_epochs = options.WARMUP

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        warmup = warmup_factor(kwargs["epoch"], self.warmup_epochs)
        confidence = sample_confidence_loss(logits_student, logits_teacher, target, self.alpha_temperature)
        correlation = masked_correlation_loss(logits_student, logits_teacher, target, self.temperature)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_scd": warmup * self.alpha * confidence,
            "loss_mcd": warmup * self.beta * correlation,
        }
