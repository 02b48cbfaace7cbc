"""DIST: "Knowledge Distillation from A Stronger Teacher" (2022).

Paper and published code: the code multiplies both losses by `τ²`, which the paper does not mention; so do the losses
here. On CIFAR-100 the authors train with weights of 2 and `τ = 4` (`configs/cifar100/dist`). The defaults below are
the code's.

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..distributed import gather_with_grad
from ..ranges import above, weights
from ._base import Distiller, register


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar 1 − the mean over rows of the Pearson correlation of two matrices `[R, L]`, float32."""
    a = a - a.mean(1, keepdim=True)
    b = b - b.mean(1, keepdim=True)
    # the published ε; it suppresses rows whose probabilities are all far below 1e-4, which a smaller ε would amplify
    correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)
    return 1 - correlation.mean()


def dist_losses(logits_student: Tensor, logits_teacher: Tensor, tau: float) -> Tuple[Tensor, Tensor]:
    """Return the scalars `(inter, intra)`, each `τ²` times a Pearson distance of the softened predictions.

    The inter-class distance compares the two predictions of each image. The intra-class distance compares, for each
    class, its two columns of probabilities over the batch.

    Args:
        logits_student: the student's logits, `[B, N]`, floating point.
        logits_teacher: the teacher's logits, `[B, N]`, floating point.
        tau: the temperature, greater than 0.
    """
    student, teacher = (torch.softmax(logits.float() / tau, dim=1) for logits in (logits_student, logits_teacher))
    return tau**2 * pearson_distance(student, teacher), tau**2 * pearson_distance(student.t(), teacher.t())


@register("DIST")
class DIST(Distiller):
    """Cross-entropy with the labels plus both `dist_losses` with the teacher's logits."""

    DEFAULTS = {
        "CE_WEIGHT": 1.0,
        "BETA": 1.0,  # weight of the inter-class loss
        "GAMMA": 1.0,  # weight of the intra-class loss
        "TAU": 1.0,  # temperature
    }
    RANGES = {"TAU": above(0), **weights("CE_WEIGHT", "BETA", "GAMMA")}
    teacher_needs = ("logits",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(DIST, cfg)
        self.ce_weight = options.CE_WEIGHT
        self.beta = options.BETA
        self.gamma = options.GAMMA
        self.tau = options.TAU

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        student, teacher = gather_with_grad(logits_student, logits_teacher)
        inter, intra = dist_losses(student, teacher, self.tau)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_inter": self.beta * inter,
            "loss_intra": self.gamma * intra,
        }
