"""ReviewKD: "Distilling Knowledge via Knowledge Review" (2021).

From the deepest level to the shallowest, each of the student's maps is fused with the result of the deeper levels (ABF,
attention based fusion). Each fused map is compared with the teacher's map of its level at several scales (HCL,
hierarchical context loss). The pooled feature counts as the last, 1×1 map; the stem's map is not used.

There are two differences from the authors' code and MDistiller. `MAX_MID_CHANNEL` has an effect; there it is always
512. Shapes are read from the models. Lists of shapes in the configuration only set how many maps are used, counted from
the deepest, and must agree with the models.

Shapes: `B` batch, `C` channels, `C_m` channels of the fused maps, `H`/`W` height and width of a map, `N` classes.
"""

from __future__ import annotations

from itertools import combinations
from math import log2
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..ranges import at_least, weights
from ._base import Distiller, register
from ._common import blank_outputs, image_size, pooled_to, warmup_factor

SCALES = (4, 2, 1)  # sides of the pooled maps that are compared in addition to the maps themselves


def hcl_loss(maps_student: Sequence[Tensor], maps_teacher: Sequence[Tensor]) -> Tensor:
    """Return the scalar hierarchical context loss, summed over the pairs of maps `[B, C, H, W]` of equal shapes.

    For each pair it is a weighted mean of mean squared errors: of the maps themselves with weight 1, and of their
    averages on grids of 4×4, 2×2 and 1×1 cells, each grid with half the weight of the one before. Grids that are not
    coarser than the map are skipped.

    Args:
        maps_student: the student's maps, `[B, C, H, W]` each, floating point.
        maps_teacher: the teacher's maps, of the same shapes.
    """
    total = torch.zeros((), device=maps_student[0].device)
    for student, teacher in zip(maps_student, maps_teacher):
        student, teacher = student.float(), teacher.float()
        scales = [scale for scale in SCALES if scale < student.shape[-2]]
        weights = [0.5**i for i in range(len(scales) + 1)]
        errors = [F.mse_loss(student, teacher)]
        for scale in scales:
            errors.append(F.mse_loss(pooled_to(student, scale, scale), pooled_to(teacher, scale, scale)))
        total = total + sum(w * e for w, e in zip(weights, errors)) / sum(weights)
    return total


def pair_stages(sides_student: Sequence[int], sides_teacher: Sequence[int]) -> List[Tuple[int, int]]:
    """Return the pairs of stages to compare, as indices `(student, teacher)`, shallow to deep.

    Lists of equal lengths are paired in order. Otherwise every stage of the shorter list gets a partner: the two last
    stages are paired, and the others, in order, with the stages of nearest sides (least sum of absolute `log2` ratios;
    the deeper stages on a tie).

    Args:
        sides_student: sides of the student's maps, in pixels, shallow to deep.
        sides_teacher: sides of the teacher's maps.
    """
    short, long = sorted((sides_student, sides_teacher), key=len)
    if not short:
        return []
    choices = [(*choice, len(long) - 1) for choice in combinations(range(len(long) - 1), len(short) - 1)]
    best = min(choices, key=lambda c: (sum(abs(log2(a / long[i])) for a, i in zip(short, c)), -sum(c)))
    pairs = list(zip(range(len(short)), best))
    return pairs if short is sides_student else [(student, teacher) for teacher, student in pairs]


class ABF(nn.Module):
    """Attention based fusion of one of the student's maps with the result of the deeper levels.

    Args:
        in_channels: the number of channels of the student's map.
        mid_channels: the number of channels between the two convolutions, `C_m`.
        out_channels: the number of channels of the teacher's map.
        fuse: whether there is a deeper level.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, fuse: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        restore = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        for conv in (reduce, restore):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.conv1 = nn.Sequential(reduce, nn.BatchNorm2d(mid_channels))
        self.conv2 = nn.Sequential(restore, nn.BatchNorm2d(out_channels))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, feature: Tensor, deeper: Optional[Tensor], out_size: Sequence[int]) -> Tuple[Tensor, Tensor]:
        """Return `(output [B, C_out, *out_size], fused [B, C_m, *out_size])`; `fused` is for the next level.

        Args:
            feature: the student's map `[B, C_in, H, W]`.
            deeper: the deeper level's `fused`, `[B, C_m, h, w]`; `None` for the deepest level.
            out_size: height and width of the teacher's map.
        """
        fused = self.conv1(feature)
        if self.att_conv is not None and deeper is not None:
            attention = _attention(self.att_conv, fused, deeper)
            deeper = F.interpolate(deeper, fused.shape[-2:], mode="nearest")
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        if tuple(fused.shape[-2:]) != tuple(out_size):
            fused = F.interpolate(fused, tuple(out_size), mode="nearest")
        return self.conv2(fused), fused


def _attention(att_conv: Any, fused: Tensor, deeper: Tensor) -> Tensor:
    """Return the weights of both maps, `[B, 2, H, W]`: `att_conv` of the two joined, after enlarging `deeper`.

    To save time, the maps are not joined, and `deeper` is convolved at its own size.
    """
    conv, sigmoid = att_conv
    own, other = conv.weight.flatten(1).chunk(2, dim=1)
    scores_deeper = F.interpolate(_pixelwise(deeper, other), fused.shape[-2:], mode="nearest")
    return sigmoid(_pixelwise(fused, own, conv.bias) + scores_deeper)


def _pixelwise(feature: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Return the 1×1 convolution of `feature` `[B, C, H, W]` with `weight` `[D, C]`, as a matrix product."""
    return F.linear(feature.movedim(1, -1), weight, bias).movedim(-1, 1)


@register("REVIEWKD")
class ReviewKD(Distiller):
    """Cross-entropy with the labels plus `hcl_loss` of the student's fused maps with the teacher's maps."""

    DEFAULTS = {
        "CE_WEIGHT": 1.0,
        "REVIEWKD_WEIGHT": 1.0,  # weight of the review loss
        "WARMUP_EPOCHS": 20,  # epochs over which the weight of loss_kd rises
        "SHAPES": None,  # sides of the student's maps, deepest first; None, here and below: read from the models
        "OUT_SHAPES": None,  # sides of the teacher's maps, deepest first
        "IN_CHANNELS": None,  # channels of the student's maps, shallowest first
        "OUT_CHANNELS": None,  # channels of the teacher's maps, shallowest first
        "MAX_MID_CHANNEL": 512,  # upper limit of the fused maps' channels
        "STU_PREACT": False,  # use the student's maps before their activation
    }
    RANGES = {
        "MAX_MID_CHANNEL": at_least(1, example=", such as 512"),
        "WARMUP_EPOCHS": at_least(0),
        **weights("CE_WEIGHT", "REVIEWKD_WEIGHT"),
    }
    teacher_needs = ("pooled", "maps")
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(ReviewKD, cfg)
        self.ce_weight = options.CE_WEIGHT
        self.reviewkd_weight = options.REVIEWKD_WEIGHT
        self.warmup_epochs = options.WARMUP_EPOCHS
        self.student_key = "preact_feats" if options.STU_PREACT else "feats"

        feats = [blank_outputs(model, image_size(cfg))[1] for model in (student, teacher)]
        shapes_student = [f.shape[1:] for f in _levels(feats[0], self.student_key)]
        shapes_teacher = [f.shape[1:] for f in _levels(feats[1], "preact_feats")]
        self.pairs = _pairs(options, shapes_student, shapes_teacher)  # shallow to deep, the pooled features last
        mid_channels = min(options.MAX_MID_CHANNEL, shapes_student[-1][0])
        self.abfs = nn.ModuleList(
            ABF(shapes_student[s][0], mid_channels, shapes_teacher[t][0], fuse=depth > 0)
            for depth, (s, t) in enumerate(reversed(self.pairs))
        )

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return [*super().get_learnable_parameters(), *self.abfs.parameters()]

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        levels_student = _levels(feats_student, self.student_key)
        levels_teacher = _levels(feats_teacher, "preact_feats")
        maps_student, maps_teacher = [], []
        fused = None
        for abf, (s, t) in zip(self.abfs, reversed(self.pairs)):
            output, fused = abf(levels_student[s], fused, levels_teacher[t].shape[-2:])
            maps_student.append(output)
            maps_teacher.append(levels_teacher[t])
        weight = self.reviewkd_weight * warmup_factor(kwargs["epoch"], self.warmup_epochs)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits.float(), target),
            "loss_kd": weight * hcl_loss(maps_student, maps_teacher),
        }


def _levels(feats: Dict[str, Any], key: str) -> List[Tensor]:
    """Return the stages' maps after the stem, shallow to deep, and the pooled feature as a 1×1 map."""
    return [*feats[key][1:], feats["pooled_feat"][:, :, None, None]]


def _pairs(options: Any, shapes_student: List[torch.Size], shapes_teacher: List[torch.Size]) -> List[Tuple[int, int]]:
    """Return the pairs of levels to compare; shapes are `[C, H, W]` each.

    Raises:
        UserError: a list of shapes in the configuration does not agree with the models.
    """
    given = {key: options[key] for key in ("SHAPES", "OUT_SHAPES", "IN_CHANNELS", "OUT_CHANNELS") if options[key]}
    if not given:
        sides = [[shape[-1] for shape in shapes[:-1]] for shapes in (shapes_student, shapes_teacher)]
        return [*pair_stages(*sides), (len(shapes_student) - 1, len(shapes_teacher) - 1)]
    lengths = [len(value) for value in given.values() if isinstance(value, (list, tuple))]
    count = min([*lengths, len(shapes_student), len(shapes_teacher)])
    for key, value in given.items():
        role, shapes = ("teacher", shapes_teacher) if key.startswith("OUT") else ("student", shapes_student)
        last = shapes[-count:]
        actual = [shape[0] for shape in last] if key.endswith("CHANNELS") else [shape[-1] for shape in reversed(last)]
        if value != actual:
            raise UserError(
                f"REVIEWKD.{key} is {value}, but the {role}'s last {count} maps have {actual} at this input size;"
                " correct it, or set it to null to have it read from the models"
            )
    return [(len(shapes_student) - i, len(shapes_teacher) - i) for i in range(count, 0, -1)]
