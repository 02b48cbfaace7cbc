"""KDSVD: "Self-supervised Knowledge Distillation Using Singular Value Decomposition" (2018).

The student learns how two neighboring stages of the teacher relate. That relation is measured between their strongest
directions, the right singular vectors of the stages' maps. As in the paper and in the authors' code, a map is
decomposed as a matrix with a row for each pixel and a column for each channel, so the directions are in channel space.
If the student's stage and the teacher's have different numbers of channels, a learnable linear map projects the
student's directions into the teacher's space. The paper does not have this map.

MDistiller uses the matrix `[C · H, W]` instead, whose directions are along the width of the map, so its losses have
other values. `LAYOUT: mdistiller` computes those. It needs stages of equal widths, but not of equal channels.

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` height and width of a stage map, `R` rows and `C` columns of its
matrix, `K` singular vectors.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..ranges import at_least, one_of, weights
from ._base import Distiller, register
from ._common import image_size, stage_shapes

SPARE_VECTORS = 3  # the teacher's K vectors are matched to the student's first K + SPARE_VECTORS
MIN_GAP = 1e-5  # between squared singular values, relative to the largest; a smaller gap counts as this one
RBF_SCALE = 8.0


class RightSingularVectors(torch.autograd.Function):
    """The first right singular vectors `[B, C, K]` and singular values `[B, K]` of `[B, R, C]`, the largest first.

    Autograd's gradient of the SVD divides by the gaps between all singular values. It is NaN if two of them are equal,
    as in a map with two dead channels. This gradient divides only by the gaps to the K vectors that are used, each at
    least `MIN_GAP`; otherwise the two agree. The singular values get no gradient. The signs of the vectors are those of
    the SVD routine. They differ between versions of PyTorch, and so does the loss, also in the published code.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, num_vectors: int) -> Tuple[Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.transpose(1, 2)
        ctx.save_for_backward(u, s, v)
        values = s[:, :num_vectors].clone()
        ctx.mark_non_differentiable(values)
        return v[:, :, :num_vectors].clone(), values

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tuple[Tensor, None]:
        u, s, v = ctx.saved_tensors
        num_vectors = grad.shape[2]
        squares = s.square()
        min_gap = (MIN_GAP * squares[:, :1, None]).clamp(min=torch.finfo(s.dtype).tiny ** 0.5)
        gaps = squares[:, None, :num_vectors] - squares[:, :, None]  # [B, all, K]
        within = v.transpose(1, 2) @ grad
        mixed = within * gaps.sign() / torch.maximum(gaps.abs(), min_gap)
        turned = v @ mixed
        if v.shape[1] > v.shape[2]:  # directions outside the row space, with singular value 0
            turned = turned + (grad - v @ within) / torch.maximum(squares[:, None, :num_vectors], min_gap)
        scaled = u * s[:, None]
        used = v[:, :, :num_vectors]
        return (scaled @ mixed) @ used.transpose(1, 2) + scaled[:, :, :num_vectors] @ turned.transpose(1, 2), None


def right_singular_vectors(feat: Tensor, num_vectors: int, layout: str = "pixels") -> Tuple[Tensor, Tensor]:
    """Return the first right singular vectors and singular values of a map, float32.

    Args:
        feat: the map, `[B, C, H, W]`, floating point.
        num_vectors: the number of vectors `K`; fewer are returned if the matrix has fewer rows or columns.
        layout: the matrix to decompose. "pixels": `[B, H · W, C]`, which gives `([B, C, K], [B, K])`. "mdistiller":
            `[B, C · H, W]`, which gives `([B, W, K], [B, K])`.
    """
    # torch.linalg.svd raises on NaN and infinity. With 0 instead, the cross-entropy becomes non-finite, and the error
    # that stops the run names the step.
    feat = torch.nan_to_num(feat.float(), nan=0.0, posinf=0.0, neginf=0.0)
    matrix = feat.flatten(1, 2) if layout == "mdistiller" else feat.flatten(2).transpose(1, 2)
    return RightSingularVectors.apply(matrix, num_vectors)


def align(student: Tensor, teacher: Tensor) -> Tensor:
    """Return, for each teacher vector of `[B, C, K]`, the nearest student vector of `[B, C, L]` with matched sign."""
    cosine = student.transpose(1, 2) @ teacher
    nearest = cosine.abs() == cosine.abs().amax(1, keepdim=True)
    return student @ (cosine.sign() * nearest)


def stage_relation(vectors: Tensor, previous: Tensor) -> Tensor:
    """Return the radial basis function `[B, C_i, C_j, K]` of two stages' vectors, `[B, C_i, K]` and `[B, C_j, K]`."""
    return torch.exp(-(vectors[:, :, None] - previous[:, None]).square() / RBF_SCALE)


def kdsvd_loss(
    feats_student: Sequence[Tensor],
    feats_teacher: Sequence[Tensor],
    k: int,
    translations: Optional[Sequence[Optional[Tensor]]] = None,
    layout: str = "pixels",
) -> Tensor:
    """Return the scalar squared difference of the stages' relations, averaged over the batch, summed over the rest.

    Args:
        feats_student: the student's maps, `[B, C_s, H_s, W_s]` for each of two or more stages, floating point.
        feats_teacher: the teacher's maps, `[B, C_t, H_t, W_t]`. If one list is longer, its last entries are ignored.
        k: the number of singular vectors of each stage.
        translations: the linear map `[C_t, C_s]` of each stage, or `None` for a stage whose channels agree. `None` for
            the whole argument if they agree in all stages.
        layout: see `right_singular_vectors`; with "mdistiller" both maps of a stage must have the same width.
    """
    losses: List[Tensor] = []
    previous: Optional[Tuple[Tensor, Tensor]] = None
    for stage, (feat_student, feat_teacher) in enumerate(zip(feats_student, feats_teacher)):
        with torch.autocast(feat_student.device.type, enabled=False):
            teacher, values = right_singular_vectors(feat_teacher, k, layout)
            student, _ = right_singular_vectors(feat_student, k + SPARE_VECTORS, layout)
            translation = None if translations is None else translations[stage]
            if translation is not None:
                student = F.normalize(translation.float() @ student, dim=1)
            weight = F.normalize(values, dim=1)[:, None]
            student, teacher = align(student, teacher) * weight, teacher * weight
            if previous is not None:
                difference = stage_relation(student, previous[0]) - stage_relation(teacher, previous[1])
                losses.append(difference.square().sum() / len(difference))
            previous = (student, teacher)
    return torch.stack(losses).sum()


@register("KDSVD")
class KDSVD(Distiller):
    """Cross-entropy with the labels plus `kdsvd_loss` of the stages after the stem.

    Stages are paired from the first one on, as in MDistiller. If one model has more stages, its deepest are not used.
    """

    DEFAULTS = {
        "K": 1,  # number of singular vectors
        "LAYOUT": "pixels",  # the matrix to decompose: "pixels" [H · W, C] | "mdistiller" [C · H, W]
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
    }
    RANGES = {
        "K": at_least(1),
        "LAYOUT": one_of("pixels", "mdistiller"),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("maps",)
    soft_labels = True
    unlabeled = True

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = self.options_of(KDSVD, cfg)
        self.k = options.K
        self.layout = options.LAYOUT
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        shapes = list(zip(*(stage_shapes(model, image_size(cfg))[1:] for model in (student, teacher))))
        self._check_shapes(shapes)
        self.translations = nn.ParameterList()
        self.needs_translation = [self.layout == "pixels" and s[1] != t[1] for s, t in shapes]
        for (s, t), needed in zip(shapes, self.needs_translation):
            if needed:
                self.translations.append(nn.Parameter(nn.init.orthogonal_(torch.empty(t[1], s[1]))))

    def _check_shapes(self, shapes: List[Tuple[torch.Size, torch.Size]]) -> None:
        if len(shapes) < 2:
            raise UserError("KDSVD relates neighboring stages, but this pair has only one in common; use AT or SP")
        widths = [[shape[3] for shape in shapes_of_one] for shapes_of_one in zip(*shapes)]
        if self.layout == "mdistiller" and widths[0] != widths[1]:
            raise UserError(
                f"KDSVD.LAYOUT mdistiller needs stages of equal widths, the student's are {widths[0]} and the teacher's"
                f" {widths[1]} pixels wide; use KDSVD.LAYOUT pixels"
            )
        max_k = min(self._max_rank(*shape[1:]) for pair in shapes for shape in pair)
        if self.k > max_k:
            raise UserError(f"KDSVD.K is {self.k}; expected 1 to {max_k}, the least rank of this pair's stages")

    def _max_rank(self, channels: int, height: int, width: int) -> int:
        return min(channels * height, width) if self.layout == "mdistiller" else min(height * width, channels)

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.translations)

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        remaining = iter(self.translations)
        translations = [next(remaining) if needed else None for needed in self.needs_translation]
        stages_student, stages_teacher = feats_student["feats"][1:], feats_teacher["feats"][1:]
        loss_feat = kdsvd_loss(stages_student, stages_teacher, self.k, translations, self.layout)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * loss_feat,
        }
