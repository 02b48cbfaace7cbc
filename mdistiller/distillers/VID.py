"""VID: "Variational Information Distillation for Knowledge Transfer" (2019).

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` height and width of a stage map.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import at_least, weights
from ._base import Distiller, register
from ._common import IMAGE_SIZE, image_size, match_size, resolve_input_size, stage_shapes

MAX_VARIANCE = 700.0  # the exponential of a larger number overflows


def vid_loss(predicted_mean: Tensor, log_scale: Tensor, feat_teacher: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the scalar mean negative log-likelihood of the teacher's map under Gaussians, up to a constant.

    Args:
        predicted_mean: the regressor's output for the student's map, `[B, C_t, H, W]`, floating point.
        log_scale: the parameter of each channel's variance, `[C_t]`; the variance is `softplus(log_scale) + eps`.
        feat_teacher: the teacher's map, `[B, C_t, H, W]`, floating point.
        eps: the least variance.
    """
    variance = (F.softplus(log_scale.float()) + eps).view(1, -1, 1, 1)
    return 0.5 * ((predicted_mean.float() - feat_teacher.float()).square() / variance + variance.log()).mean()


def make_regressor(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return three 1x1 convolutions without bias, with ReLUs between them."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
    )


@register("VID")
class VID(Distiller):
    """Cross-entropy with the labels plus `vid_loss` of each stage after the stem.

    The variances are trained, moved and saved with the other parameters. MDistiller keeps them in a plain list, so they
    keep their initial values. Stages are paired from the first one on, as in MDistiller. If one model has more stages,
    its deepest are not used. `INPUT_SIZE` is `[height, width]` in pixels, as in MDistiller's files; `None` is the size
    of the data set's images.
    """

    DEFAULTS = {
        "EPS": 1e-5,  # lower limit of the variance
        "INIT_PRED_VAR": 5.0,  # initial variance
        "INPUT_SIZE": None,  # side of the images in pixels, or [height, width]; None: DATASET.INPUT_SIZE
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
    }
    RANGES = {"EPS": at_least(0), "INPUT_SIZE": IMAGE_SIZE, **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT")}
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(VID, cfg)
        self.eps = options.EPS
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        size = resolve_input_size(options.INPUT_SIZE, image_size(cfg), "VID.INPUT_SIZE")
        channels = list(zip(*([shape[1] for shape in stage_shapes(model, size)[1:]] for model in (student, teacher))))
        self.regressors = nn.ModuleList(make_regressor(s, t) for s, t in channels)
        log_scale = math.log(math.expm1(options.INIT_PRED_VAR - self.eps))
        self.log_scales = nn.ParameterList([nn.Parameter(torch.full((t,), log_scale)) for _, t in channels])

    @classmethod
    def config_errors(cls, options: Any, section: str) -> Iterator[str]:
        yield from super().config_errors(options, section)
        if not MAX_VARIANCE > options.INIT_PRED_VAR > options.EPS:
            yield (
                f"{section}.INIT_PRED_VAR is {options.INIT_PRED_VAR} and {section}.EPS {options.EPS}; expected an"
                f" initial variance above EPS, the least variance, and below {MAX_VARIANCE:g} (5.0 and 1e-5 are the"
                " defaults)"
            )

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return [*super().get_learnable_parameters(), *self.regressors.parameters(), *self.log_scales]

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        losses = []
        maps = zip(feats_student["feats"][1:], feats_teacher["feats"][1:])
        for regressor, log_scale, pair in zip(self.regressors, self.log_scales, maps):
            feat_student, feat_teacher = match_size(*pair)
            losses.append(vid_loss(regressor(feat_student), log_scale, feat_teacher, self.eps))
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * torch.stack(losses).sum(),
        }
