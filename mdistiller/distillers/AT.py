"""AT: "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention
Transfer" (2017).

The paper sums the Euclidean distances between the attention maps. Here, as in MDistiller, the loss is the mean of their
squared differences; the default weight of 1000 is for that form.

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` height and width of a stage map.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..ranges import at_least, weights
from ._base import Distiller, register
from ._common import check_stages, match_size


def attention(feat: Tensor, p: float) -> Tensor:
    """Return the attention map `[B, H·W]` of `feat [B, C, H, W]`: the channel mean of `|feat|^p`, of unit length.

    MDistiller's code omits the absolute value, which makes no difference for even `p` or for activated maps.
    """
    return F.normalize(feat.abs().pow(p).mean(1).flatten(1))


def at_loss(feats_student: Sequence[Tensor], feats_teacher: Sequence[Tensor], p: float) -> Tensor:
    """Return the scalar mean squared difference of the attention maps, summed over the stages.

    Args:
        feats_student: the student's maps, `[B, C_s, H_s, W_s]` for each stage, floating point.
        feats_teacher: the teacher's maps, `[B, C_t, H_t, W_t]`. The larger map of a pair is average-pooled to the size
            of the smaller. If one list is longer, its last entries are ignored.
        p: the exponent of the activations, greater than 0.
    """
    losses = []
    for pair in zip(feats_student, feats_teacher):
        student, teacher = (attention(feat, p) for feat in match_size(*(feat.float() for feat in pair)))
        losses.append((student - teacher).square().mean())
    return torch.stack(losses).sum()


@register("AT")
class AT(Distiller):
    """Cross-entropy with the labels plus `at_loss` of the stages after the stem.

    Stages are paired from the first one on, as in MDistiller. If one model has more stages, its deepest are not used.
    """

    DEFAULTS = {
        "P": 2.0,  # power of the activations in an attention map
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1000.0},
    }
    RANGES = {
        "P": at_least(1, example=" (2.0 is the default; the gradient of a lower power is infinite at 0)"),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(AT, cfg)
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
