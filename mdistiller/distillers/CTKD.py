"""CTKD: "Curriculum Temperature for Knowledge Distillation" (2023), with a global temperature, applied to KD.

The temperature is learned adversarially: a reversed gradient increases the loss that the student decreases. The
strength `λ` of that gradient rises with the epochs, an easy-to-hard curriculum. The published code gives `λ` a negative
sign, from `decay_max` 0 to `decay_min` −1; here it goes from 0 to 1, as in the paper. As in the code, the gradient also
passes through the factor `T²`, and weight decay applies to the temperature's parameter.

The paper's other variant, in which a small network predicts a temperature for each image, is not implemented.

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import above, at_least, weights
from ._base import Distiller, register
from .KD import kd_loss


def cosine_curriculum(epoch: float, loops: float, start: float, end: float) -> float:
    """Return `λ`: from `start` at epoch 0 along half a cosine to `end` at epoch `loops`, then constant."""
    progress = min(max(epoch / loops, 0.0), 1.0)
    return start + (end - start) * 0.5 * (1 - math.cos(math.pi * progress))


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return `x` unchanged; its gradient is multiplied by `−strength`."""
    return x.detach() - strength * (x - x.detach())


class GlobalTemperature(nn.Module):
    """A learnable temperature `T = start + span · sigmoid(x)`; `x` is initialized to 1, as in the published code."""

    def __init__(self, start: float, span: float) -> None:
        super().__init__()
        self.start = start
        self.span = span
        self.raw = nn.Parameter(torch.ones(()))

    def forward(self, strength: float) -> Tensor:
        """Return the scalar `T`; its gradient is reversed and multiplied by `strength`."""
        return self.start + self.span * torch.sigmoid(reverse_gradient(self.raw, strength).float())


@register("CTKD")
class CTKD(Distiller):
    """KD with an adversarially learned temperature; `forward_train` needs `epoch`, counted from 1."""

    DEFAULTS = {
        "T_START": 1.0,  # lowest temperature
        "T_END": 20.0,  # range of the temperature, which stays below T_START + T_END
        "LAMBDA_MIN": 0.0,  # strength of the reversed gradient before the first epoch
        "LAMBDA_MAX": 1.0,  # strength of the reversed gradient from epoch LOOPS on
        "LOOPS": 10.0,  # epochs over which the strength rises
        "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9},
    }
    RANGES = {
        **dict.fromkeys(("T_START", "T_END", "LOOPS"), above(0)),
        **dict.fromkeys(("LAMBDA_MIN", "LAMBDA_MAX"), at_least(0, example=" (the published code writes -1 for 1)")),
        **weights("LOSS.CE_WEIGHT", "LOSS.KD_WEIGHT"),
    }
    teacher_needs = ("logits",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(CTKD, cfg)
        self.temperature = GlobalTemperature(options.T_START, options.T_END)
        self.lambda_min = options.LAMBDA_MIN
        self.lambda_max = options.LAMBDA_MAX
        self.loops = options.LOOPS
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.kd_weight = options.LOSS.KD_WEIGHT

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.temperature.parameters())

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        strength = cosine_curriculum(kwargs["epoch"], self.loops, self.lambda_min, self.lambda_max)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.kd_weight * kd_loss(logits_student, logits_teacher, self.temperature(strength)),
        }
