"""MLKD: "Multi-Level Logit Distillation" (2023).

Predictions at several temperatures are matched on three levels: for each image, between the images of a batch, and
between the classes.

Paper and published code: the paper has no masks. The code masks the losses of the weakly augmented view. The mask is
meant to keep the images whose highest teacher probability is at most the median, and the classes whose summed
probability is at most the median. However, the code multiplies each mask by a loss that is already averaged, and
averages again. So the mask only scales the loss by the share of images, or classes, that it keeps: about one half.
`CONFIDENCE_MASK: False`, the default, is the paper's form; `True` is the code's.

Views: the code trains on two views of each image, a weakly augmented one and one by RandAugment with 2 operations of
magnitude 10. The second view adds its cross-entropy and its loss of each image, without a mask. For two of the five
temperatures, 2 and 6, the code computes the second view's loss from the first view; `CONFIDENCE_MASK: True` does the
same. The data sets of this library provide one view, so there are no losses of a second view. Your own loader may
provide two: `image_strong` next to `image` in the batch, or a pair `[weak, strong]` as `image`.

Shapes: `B` batch, `N` classes, `K` temperatures.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..distributed import gather_with_grad
from ..ranges import Range, above, weights
from ._base import Distiller, register

# temperatures at which the published code computes the strong view's loss from the weak view
FROM_WEAK_VIEW = (2.0, 6.0)


def instance_loss(logits_student: Tensor, logits_teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return the scalar `Σ_T T² · KL(softmax(teacher / T) ‖ softmax(student / T))`, averaged over the batch.

    Args:
        logits_student: the student's logits, `[B, N]`, floating point.
        logits_teacher: the teacher's logits, `[B, N]`, floating point.
        temperatures: the temperatures, one or more numbers `T > 0`.
    """
    log_student, log_teacher = (_log_predictions(logits, temperatures) for logits in (logits_student, logits_teacher))
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(2).mean(1)
    return torch.stack([t**2 * value for t, value in zip(temperatures, divergence)]).sum()


def batch_relation_loss(logits_student: Tensor, logits_teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return the scalar `Σ_T ‖P_t P_tᵀ − P_s P_sᵀ‖² / B`, `P` the predictions `[B, N]` at temperature `T`.

    Arguments as in `instance_loss`.
    """
    student, teacher = (_log_predictions(logits, temperatures).exp() for logits in (logits_student, logits_teacher))
    return _gram_distance(student, teacher)


def class_relation_loss(logits_student: Tensor, logits_teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return the scalar `Σ_T ‖P_tᵀ P_t − P_sᵀ P_s‖² / N`: `batch_relation_loss` between classes instead of images."""
    student, teacher = (_log_predictions(logits, temperatures).exp() for logits in (logits_student, logits_teacher))
    return _gram_distance(student.mT, teacher.mT)


def low_confidence_shares(logits_teacher: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the shares of images and of classes whose teacher confidence is at most the median.

    An image's confidence is its highest probability. A class's confidence is the sum of its probability over the batch.

    Args:
        logits_teacher: the teacher's logits, `[B, N]`, floating point.

    Returns:
        Two scalars in (0, 1]: one half, or more if the number is odd or values are equal.
    """
    prediction = torch.softmax(logits_teacher.float(), dim=1)
    images, classes = ((c <= torch.quantile(c, 0.5)).float().mean() for c in (prediction.amax(1), prediction.sum(0)))
    return images, classes


def _log_predictions(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return log-probabilities `[K, B, N]`, float32."""
    return F.log_softmax(torch.stack([logits.float() / t for t in temperatures]), dim=2)


def _gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference of the Gram matrices of `[K, R, L]`, summed over `K` and divided by `R`."""
    with torch.autocast(student.device.type, enabled=False):  # autocast would use half precision
        return (teacher @ teacher.mT - student @ student.mT).square().sum() / student.shape[1]


@register("MLKD")
class MLKD(Distiller):
    """Cross-entropy with the labels plus `instance_loss`, `batch_relation_loss` and `class_relation_loss`."""

    DEFAULTS = {
        "TEMPERATURE": 4.0,
        "EXTRA_TEMPERATURES": [2.0, 3.0, 5.0, 6.0],  # further temperatures besides TEMPERATURE
        "CONFIDENCE_MASK": False,  # False: the paper's form; True: the published code's
        "LOSS": {
            "CE_WEIGHT": 0.1,
            "KD_WEIGHT": 0.9,  # weight of the distillation loss of each of the three levels
        },
    }
    RANGES = {
        "TEMPERATURE": above(0),
        "EXTRA_TEMPERATURES": Range(lambda ts: all(t in above(0) for t in ts), "numbers above 0, as in [2.0, 6.0]"),
        **weights("LOSS.CE_WEIGHT", "LOSS.KD_WEIGHT"),
    }
    teacher_needs = ("logits",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(MLKD, cfg)
        self.temperatures: List[float] = [options.TEMPERATURE, *options.EXTRA_TEMPERATURES]
        self.confidence_mask = options.CONFIDENCE_MASK
        self.from_weak_view = [t for t in options.EXTRA_TEMPERATURES if self.confidence_mask and t in FROM_WEAK_VIEW]
        self.strong_temperatures = [
            options.TEMPERATURE,
            *(t for t in options.EXTRA_TEMPERATURES if t not in self.from_weak_view),
        ]
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.kd_weight = options.LOSS.KD_WEIGHT

    def forward_train(
        self, image: Union[Tensor, Sequence[Tensor]], target: Tensor, **kwargs: Any
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Return the logits `[B, N]` of the weak view and the losses; see `Distiller.forward_train`.

        Args:
            image: the weak view `[B, 3, H, W]`, or a pair `[weak, strong]` of views.
            target: the labels, int64 `[B]`, or probabilities, float32 `[B, N]`.
            kwargs: may contain the strong view, `image_strong [B, 3, H, W]`.
        """
        weak, strong = (image, kwargs.get("image_strong")) if isinstance(image, Tensor) else image
        own, own_teacher = self._logits(weak)
        student, teacher = gather_with_grad(own, own_teacher)
        images, classes = low_confidence_shares(teacher) if self.confidence_mask else (1.0, 1.0)
        loss_ce = F.cross_entropy(own.float(), target)
        loss_kd = images * instance_loss(student, teacher, self.temperatures)
        if strong is not None:
            student_strong, teacher_strong = self._logits(strong)
            loss_ce = loss_ce + F.cross_entropy(student_strong.float(), target)
            loss_kd = loss_kd + instance_loss(student_strong, teacher_strong, self.strong_temperatures)
            if self.from_weak_view:
                loss_kd = loss_kd + instance_loss(student, teacher, self.from_weak_view)
        return own, {
            "loss_ce": self.ce_weight * loss_ce,
            "loss_kd": self.kd_weight * loss_kd,
            "loss_batch": self.kd_weight * images * batch_relation_loss(student, teacher, self.temperatures),
            "loss_class": self.kd_weight * classes * class_relation_loss(student, teacher, self.temperatures),
        }

    def _logits(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        return self.student(image)[0], logits_teacher
