"""MLKD: "Multi-Level Logit Distillation" (2023).

Predictions at several temperatures are matched on three levels: for each image, between images of the batch, and
between classes.

Paper and published code: the paper sums over all images and classes. The code keeps, for the weakly augmented view,
only the images of which the teacher is less sure than of the median one, and only the classes that get at most the
median of its probability; and it averages the relation matrices that are left, over their entries, where the paper
sums. `CONFIDENCE_MASK: False` is the paper's form. The code is followed by default, as far as we know it: it could not
be consulted when this was written. It also trains on two views of each image, a weakly and a strongly augmented one
(the strong one without masks, and without relation losses), and reads its weights from the section `KD`.

Two views: a batch may hold `image_strong` beside `image`, or a pair `[weak, strong]` as `image`. With the one view
that the data sets here give, the terms of the strong view are left out, and the masks leave half of the images.

Shapes: `B` batch, `N` classes, `K` temperatures.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..processes import gathered
from ..ranges import Range, above, weights
from ._base import Distiller, register


def instance_loss(
    logits_student: Tensor, logits_teacher: Tensor, temperatures: Sequence[float], mask: Optional[Tensor] = None
) -> Tensor:
    """Return the scalar `Σ_T T² · KL(softmax(teacher / T) ‖ softmax(student / T))`, averaged over the batch.

    Args:
        logits_student: `[B, N]`, floating point.
        logits_teacher: `[B, N]`, floating point.
        temperatures: `K` numbers above 0.
        mask: `[B]`, bool; images outside it count as 0.
    """
    log_student, log_teacher = (_log_predictions(logits, temperatures) for logits in (logits_student, logits_teacher))
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(2)
    per_image = sum((t**2 * row for t, row in zip(temperatures, divergence)), torch.zeros_like(divergence[0]))
    return per_image.mean() if mask is None else (per_image * mask).mean()


def batch_relation_loss(
    logits_student: Tensor, logits_teacher: Tensor, temperatures: Sequence[float], mask: Optional[Tensor] = None
) -> Tensor:
    """Return the scalar `Σ_T ‖P_t P_tᵀ − P_s P_sᵀ‖² / B`, `P` the predictions `[B, N]` at temperature `T`.

    With `mask [B]`, the mean of the matrices' entries instead of their sum; columns outside the mask count as 0.
    """
    student, teacher = (_log_predictions(logits, temperatures).exp() for logits in (logits_student, logits_teacher))
    return _gram_distance(student, teacher, mask)


def class_relation_loss(
    logits_student: Tensor, logits_teacher: Tensor, temperatures: Sequence[float], mask: Optional[Tensor] = None
) -> Tensor:
    """Return the scalar `Σ_T ‖P_tᵀ P_t − P_sᵀ P_s‖² / N`; as `batch_relation_loss`, between classes, `mask [N]`."""
    student, teacher = (_log_predictions(logits, temperatures).exp() for logits in (logits_student, logits_teacher))
    return _gram_distance(student.mT, teacher.mT, mask)


def low_confidence_masks(logits_teacher: Tensor) -> Tuple[Tensor, Tensor]:
    """Return bool masks `[B]` of images and `[N]` of classes: those at or below the median of the teacher's confidence.

    An image's confidence is its highest probability, a class's the sum of its probability over the batch.
    """
    prediction = torch.softmax(logits_teacher.float(), dim=1)
    images, classes = prediction.amax(1), prediction.sum(0)
    return images <= torch.quantile(images, 0.5), classes <= torch.quantile(classes, 0.5)


def _log_predictions(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return log-probabilities `[K, B, N]`, float32."""
    return F.log_softmax(torch.stack([logits.float() / t for t in temperatures]), dim=2)


def _gram_distance(student: Tensor, teacher: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Compare the products of rows of `[K, R, L]`, each with each, summed over `K` and divided by `R`."""
    with torch.autocast(student.device.type, enabled=False):  # it would multiply matrices in half precision
        squared = (teacher @ teacher.mT - student @ student.mT).square().sum(0) / student.shape[1]
    return squared.sum() if mask is None else (squared * mask).mean()


@register("MLKD")
class MLKD(Distiller):
    """Cross-entropy with the labels plus distillation on the level of images, of the batch and of classes."""

    DEFAULTS = {
        "TEMPERATURE": 4.0,
        "EXTRA_TEMPERATURES": [2.0, 3.0, 5.0, 6.0],
        "CONFIDENCE_MASK": False,  # the paper's form; True: the authors' code's, of the weak view beside a strong one
        "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9},  # KD_WEIGHT of each of the three levels
    }
    RANGES = {
        "TEMPERATURE": above(0),
        "EXTRA_TEMPERATURES": Range(lambda ts: all(t in above(0) for t in ts), "numbers above 0, as in [2.0, 6.0]"),
        **weights("LOSS.CE_WEIGHT", "LOSS.KD_WEIGHT"),
    }
    teacher_needs = ("logits",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher)
        options = MLKD.checked(cfg, "MLKD")
        self.temperatures: List[float] = [options.TEMPERATURE, *options.EXTRA_TEMPERATURES]
        self.confidence_mask = options.CONFIDENCE_MASK
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.kd_weight = options.LOSS.KD_WEIGHT

    def forward_train(
        self, image: Union[Tensor, Sequence[Tensor]], target: Tensor, **kwargs: Any
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """As `Distiller.forward_train`; the logits are those of the weak view.

        Args:
            image: `[B, 3, H, W]`, the (weak) view, or the pair `[weak, strong]` of such tensors.
            target: `[B]`, int64 labels.
            kwargs: `image_strong [B, 3, H, W]`, where there is a second view.
        """
        weak, strong = (image, kwargs.get("image_strong")) if isinstance(image, Tensor) else image
        own, own_teacher = self._logits(weak)
        student, teacher = gathered(own, own_teacher)
        images, classes = low_confidence_masks(teacher) if self.confidence_mask else (None, None)
        loss_ce = F.cross_entropy(own.float(), target)
        loss_kd = instance_loss(student, teacher, self.temperatures, images)
        if strong is not None:
            student_strong, teacher_strong = self._logits(strong)
            loss_ce = loss_ce + F.cross_entropy(student_strong.float(), target)
            loss_kd = loss_kd + instance_loss(student_strong, teacher_strong, self.temperatures)
        return own, {
            "loss_ce": self.ce_weight * loss_ce,
            "loss_kd": self.kd_weight * loss_kd,
            "loss_batch": self.kd_weight * batch_relation_loss(student, teacher, self.temperatures, images),
            "loss_class": self.kd_weight * class_relation_loss(student, teacher, self.temperatures, classes),
        }

    def _logits(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        return self.student(image)[0], logits_teacher
