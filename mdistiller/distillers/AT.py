"""AT: "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention
Transfer" (2017).

The paper sums the Euclidean distances of the maps; this is MDistiller's mean of their squared differences, to which
its weight of 1000 belongs.

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` pixels of a stage map.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ranges import above, weights
from ._base import Distiller, register
from ._common import check_stages, match_size


def attention(feat: Tensor, p: float) -> Tensor:
    """Return where a map `[B, C, H, W]` is strong: `mean over channels of |feat|^p`, `[B, H·W]` of unit length.

    MDistiller's code leaves out the absolute value, which is the same for even `p` and for activated maps.
    """
    return F.normalize(feat.abs().pow(p).mean(1).flatten(1))


def at_loss(feats_student: Sequence[Tensor], feats_teacher: Sequence[Tensor], p: float) -> Tensor:
    """Return the scalar mean squared difference of the attention maps, summed over the stages.

    Args:
        feats_student: a map `[B, C_s, H_s, W_s]` for each stage, floating point.
        feats_teacher: the same of the teacher, `[B, C_t, H_t, W_t]`; the larger map of a pair is average-pooled. Where
            one list is longer, the rest of it is left out.
        p: the power of the activations, greater than 0.
    """
    losses = []
    for pair in zip(feats_student, feats_teacher):
        student, teacher = (attention(feat, p) for feat in match_size(*(feat.float() for feat in pair)))
        losses.append((student - teacher).square().mean())
    return torch.stack(losses).sum()


@register("AT")
class AT(Distiller):
    """Cross-entropy with the labels plus `at_loss` of the stages after the stem.

    Stages pair up from the stem on, as in MDistiller: of a model that has more of them, the deepest have no partner.
    """

    DEFAULTS = {
        "P": 2.0,
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1000.0},
    }
    RANGES = {"P": above(0, "a power", " (2.0 is the default)"), **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT")}
    teacher_needs = ("maps",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher)
        options = cfg.AT
        check_stages(student, teacher)
        self.p = options.P
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        loss_feat = at_loss(feats_student["feats"][1:], feats_teacher["feats"][1:], self.p)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * loss_feat,
        }
