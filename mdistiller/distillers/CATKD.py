"""CAT-KD: "Class Attention Transfer Based Knowledge Distillation" (2023).

A class activation map (CAM) shows the regions of an image that support a class. It is the map before the pooling,
weighted by the classifier's row of that class. The student's CAMs, pooled to a few cells and normalized, learn to match
the teacher's.

Paper and published code: the paper sums the squared error over the cells; the code averages it, as here. The CAMs here
omit the classifier's bias, which is a constant of each class. The published code replaces each model's classifier by a
1×1 convolution, which does not fit any checkpoint, and the student's has no bias. Here the CAMs are computed from the
linear layer, and the student's classifier keeps its bias. `CE_WEIGHT: 0` is the paper's CAT, which trains on CAMs only.
The defaults are those of the authors' code. The authors choose the weight, the resolution and the normalization for
each pair, as in `configs/cifar100/cat_kd`.

Shapes: `B` batch, `C` channels of the map that is pooled for the classifier, `H`/`W` its height and width, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..models._adapt import averages_final_map, evaluation_mode
from ..models._contract import ClassifierModel
from ..ranges import above, weights
from ._base import Distiller, register
from ._common import InputSize, image_size, pooled_to, resolve_input_size


def class_activation_maps(feature_map: Tensor, weight: Tensor) -> Tensor:
    """Return the CAMs `[B, N, H, W]`, float32, of a map `[B, C, H, W]` and the classifier's weight `[N, C]`."""
    with torch.autocast(feature_map.device.type, enabled=False):
        return torch.einsum("nc,bchw->bnhw", weight.float(), feature_map.float())


def cat_loss(cams_student: Tensor, cams_teacher: Tensor, normalize: bool = True) -> Tensor:
    """Return the scalar mean squared difference of two models' CAMs.

    Args:
        cams_student: the student's CAMs, `[B, N, H, W]`, float32.
        cams_teacher: the teacher's CAMs, `[B, N, H, W]`, float32.
        normalize: whether to divide each CAM by its L2 norm first.
    """
    student, teacher = cams_student.flatten(2), cams_teacher.flatten(2)
    if normalize:
        student, teacher = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    return F.mse_loss(student, teacher)


def forward_with_map(model: Any, image: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the logits `[B, N]` and the map `[B, C, H, W]` whose average is the classifier's input.

    A model that has only MDistiller's `forward` returns its last map. `_check_map` refuses a model with layers between
    that map and the pooling.
    """
    if not isinstance(model, ClassifierModel):
        logits, feats = model(image)
        return logits, feats["final_map"] if "final_map" in feats else feats["feats"][-1]
    feature_map, classifier = model.forward_map(model.forward_stages(image).final_map), model.get_classifier()
    with torch.autocast(feature_map.device.type, enabled=False):
        return classifier(feature_map.mean((2, 3), dtype=classifier.weight.dtype)), feature_map


@register("CAT_KD")
class CATKD(Distiller):
    """Cross-entropy with the labels plus `cat_loss` between the CAMs of student and teacher."""

    DEFAULTS = {
        "NORMALIZE": True,  # compare normalized CAMs
        "LOSS": {
            "CE_WEIGHT": 1.0,
            "CAT_WEIGHT": 400.0,  # weight of the CAM loss
            "CAM_RESOLUTION": 2,  # side, in cells, to which the CAMs are pooled
        },
    }
    RANGES = {"LOSS.CAM_RESOLUTION": above(0), **weights("LOSS.CE_WEIGHT", "LOSS.CAT_WEIGHT")}
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(CATKD, cfg)
        for role, model in (("student", student), ("teacher", teacher)):
            _check_map(role, model, image_size(cfg))
        self.normalize = options.NORMALIZE
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.cat_weight = options.LOSS.CAT_WEIGHT
        self.resolution = options.LOSS.CAM_RESOLUTION

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, map_student = forward_with_map(self.student, image)
        with torch.no_grad():
            _, map_teacher = forward_with_map(self.teacher, image)
            cams_teacher = self._cams(self.teacher, map_teacher)
        loss_cat = cat_loss(self._cams(self.student, map_student), cams_teacher, self.normalize)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_cat": self.cat_weight * loss_cat,
        }

    def _cams(self, model: Any, feature_map: Tensor) -> Tensor:
        # a CAM is linear in the map, so pooling the map first gives the same result for a fraction of the work
        pooled = pooled_to(feature_map.float(), self.resolution, self.resolution)
        return class_activation_maps(pooled, model.get_classifier().weight)


def _check_map(role: str, model: Any, input_size: InputSize) -> None:
    """Raise a UserError if the model does not provide the map that is pooled for its classifier."""
    height, width = resolve_input_size(None, input_size, "DATASET.INPUT_SIZE")
    first = next(model.parameters())
    with evaluation_mode(model):
        _, feature_map = forward_with_map(model, first.new_zeros(2, 3, height, width))
    consumed = model.get_classifier().in_features
    if feature_map.shape[1] != consumed:
        raise UserError(
            f"CAT_KD needs the map that is pooled for the classifier; the {role}'s last map has {feature_map.shape[1]}"
            f" channels, its classifier consumes {consumed}; derive the model from ClassifierModel and implement"
            " forward_map, or choose a method that needs no such map (KD, DIST)"
        )
    if not averages_final_map(model):
        raise UserError(
            f"CAT_KD needs the map that is pooled for the classifier; the {role}'s 'pooled_feat' is not the average of"
            " its last map: have it return that map as 'final_map', or choose a method that needs none (KD, DIST)"
        )
