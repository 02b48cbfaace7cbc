"""FitNet: "FitNets: Hints for Thin Deep Nets" (2015).

The paper first trains the student up to the hint layer, then the whole student. Here, as in MDistiller, there is a
single stage with both losses.

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` height and width of a stage map.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..models._adapt import evaluation_mode
from ..ranges import at_least, weights
from ._base import Distiller, register
from ._common import IMAGE_SIZE, ConvReg, InputSize, image_size, resolve_input_size, stage_shapes


def hint_loss(regressed_student: Tensor, feat_teacher: Tensor) -> Tensor:
    """Return the scalar mean squared error of two maps; both `[B, C_t, H_t, W_t]`, floating point."""
    return F.mse_loss(regressed_student.float(), feat_teacher.float())


@register("FITNET")
class FitNet(Distiller):
    """Cross-entropy with the labels plus `hint_loss` of one stage; a `ConvReg` maps the student's map to the teacher's.

    `HINT_LAYER` is an index into `feats`; the stem is 0. `INPUT_SIZE` is `[height, width]` in pixels, as in
    MDistiller's files; `None` is the size of the data set's images.
    """

    DEFAULTS = {
        "HINT_LAYER": 2,  # index of the stage map to imitate; the stem is 0
        "INPUT_SIZE": None,  # side of the images in pixels, or [height, width]; None: DATASET.INPUT_SIZE
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 100.0},
    }
    RANGES = {"HINT_LAYER": at_least(0), "INPUT_SIZE": IMAGE_SIZE, **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT")}
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(FitNet, cfg)
        self.hint_layer = options.HINT_LAYER
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        size = resolve_input_size(options.INPUT_SIZE, image_size(cfg), "FITNET.INPUT_SIZE")
        shapes_student, shapes_teacher = (stage_shapes(model, size) for model in (student, teacher))
        count = min(len(shapes_student), len(shapes_teacher))
        if self.hint_layer >= count:
            raise UserError(
                f"FITNET.HINT_LAYER is {self.hint_layer}; expected 0 to {count - 1}: the student gives"
                f" {len(shapes_student)} maps, the teacher {len(shapes_teacher)}"
            )
        self.conv_reg = ConvReg(shapes_student[self.hint_layer], shapes_teacher[self.hint_layer])
        self._check_size(image_size(cfg))

    def _check_size(self, input_size: InputSize) -> None:
        """Raise a UserError if the regressor, which may be built for another size, does not fit images of this one."""
        shape_student, shape_teacher = (
            stage_shapes(model, input_size)[self.hint_layer] for model in (self.student, self.teacher)
        )
        with evaluation_mode(self.conv_reg):
            regressed = self.conv_reg(torch.zeros(shape_student)).shape
        if regressed != shape_teacher:
            raise UserError(
                f"the teacher's map is {tuple(shape_teacher[1:])}, the student's regressed map {tuple(regressed[1:])}:"
                " the regressor was built for images of another size; set FITNET.INPUT_SIZE to None"
            )

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.conv_reg.parameters())

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        regressed = self.conv_reg(feats_student["feats"][self.hint_layer])
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * hint_loss(regressed, feats_teacher["feats"][self.hint_layer]),
        }
