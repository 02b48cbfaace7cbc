"""KDSVD: "Self-supervised Knowledge Distillation Using Singular Value Decomposition" (2018).

The relation of two neighbouring stages is that of their strongest directions, the right singular vectors of the stages'
maps. A map is decomposed as a matrix whose rows are pixels and whose columns are channels, as in the paper and in the
authors' code, so the directions are those of channel space. Where the student's stage has another number of channels
than the teacher's, a learnable linear map turns its directions into the teacher's space (an addition).

MDistiller differs: it takes `[C · H, W]` for the matrix, so that the directions lie along the width of the map, and its
losses have other values. `LAYOUT: mdistiller` computes those; it needs stages of equal widths, whatever their channels.

Shapes: `B` batch, `C_s`/`C_t` channels, `H`/`W` pixels of a stage map, `R` rows and `C` columns of its matrix, `K`
singular vectors.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..ranges import at_least, one_of, weights
from ._base import Distiller, register
from ._common import stage_shapes

SPARE_VECTORS = 3  # the student's, beyond K, among which the teacher's vectors look for a partner
LEAST_GAP = 1e-5  # between squared singular values, relative to the largest; closer ones count as this far apart
RBF_SCALE = 8.0


class RightSingularVectors(torch.autograd.Function):
    """The first right singular vectors `[B, C, K]` and singular values `[B, K]` of `[B, R, C]`, the largest first.

    Autograd's own gradient divides by the gaps between all singular values and is NaN where two of them are equal, as
    they are in a map with two dead channels. This one divides only by the gaps to the K vectors that are used, and by
    `LEAST_GAP` at least; elsewhere both agree. The values carry no gradient. The signs are those of the SVD routine:
    they differ between versions of PyTorch, and so does the loss, in the published code as well.
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
        least = (LEAST_GAP * squares[:, :1, None]).clamp(min=torch.finfo(s.dtype).tiny ** 0.5)
        gaps = squares[:, None, :num_vectors] - squares[:, :, None]  # [B, all, K]
        within = v.transpose(1, 2) @ grad
        mixed = within * gaps.sign() / torch.maximum(gaps.abs(), least)
        turned = v @ mixed
        if v.shape[1] > v.shape[2]:  # directions outside the row space: their singular value is 0
            turned = turned + (grad - v @ within) / torch.maximum(squares[:, None, :num_vectors], least)
        scaled = u * s[:, None]
        used = v[:, :, :num_vectors]
        return (scaled @ mixed) @ used.transpose(1, 2) + scaled[:, :, :num_vectors] @ turned.transpose(1, 2), None


def right_singular_vectors(feat: Tensor, num_vectors: int, layout: str = "pixels") -> Tuple[Tensor, Tensor]:
    """Return the first right singular vectors and singular values of a map, float32.

    Args:
        feat: `[B, C, H, W]`, floating point.
        num_vectors: `K`; fewer are returned where the rank is lower.
        layout: "pixels": of `[B, H · W, C]`; returns `([B, C, K], [B, K])`. "mdistiller": of `[B, C · H, W]`; returns
            `([B, W, K], [B, K])`.
    """
    # a map that is not finite stops the run by its other loss, which names the step; the SVD would only fail
    feat = torch.nan_to_num(feat.float(), nan=0.0, posinf=0.0, neginf=0.0)
    matrix = feat.flatten(1, 2) if layout == "mdistiller" else feat.flatten(2).transpose(1, 2)
    return RightSingularVectors.apply(matrix, num_vectors)


def align(student: Tensor, teacher: Tensor) -> Tensor:
    """Return for each of the teacher's vectors `[B, C, K]` the student's nearest of `[B, C, L]`, its sign matched."""
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
    """Return the scalar squared difference of the stages' relations, summed over all but the batch, which is averaged.

    Args:
        feats_student: a map `[B, C_s, H_s, W_s]` for each of two or more stages, floating point.
        feats_teacher: the same of the teacher, `[B, C_t, H_t, W_t]`; where one list is longer, its rest is left out.
        k: singular vectors of each stage.
        translations: for each stage `[C_t, C_s]`, or `None` where the channels agree; `None`: they agree everywhere.
        layout: see `right_singular_vectors`; with "mdistiller" both maps of a stage are equally wide.
    """
    losses: List[Tensor] = []
    last: Optional[Tuple[Tensor, Tensor]] = None
    for stage, (feat_student, feat_teacher) in enumerate(zip(feats_student, feats_teacher)):
        with torch.autocast(feat_student.device.type, enabled=False):
            teacher, values = right_singular_vectors(feat_teacher, k, layout)
            student, _ = right_singular_vectors(feat_student, k + SPARE_VECTORS, layout)
            translation = None if translations is None else translations[stage]
            if translation is not None:
                student = F.normalize(translation.float() @ student, dim=1)
            weight = F.normalize(values, dim=1)[:, None]
            student, teacher = align(student, teacher) * weight, teacher * weight
            if last is not None:
                difference = stage_relation(student, last[0]) - stage_relation(teacher, last[1])
                losses.append(difference.square().sum() / len(difference))
            last = (student, teacher)
    return torch.stack(losses).sum()


@register("KDSVD")
class KDSVD(Distiller):
    """Cross-entropy with the labels plus `kdsvd_loss` of the stages after the stem.

    Stages pair up from the stem on, as in MDistiller: of a model that has more of them, the deepest have no partner.
    """

    DEFAULTS = {
        "K": 1,
        "LAYOUT": "pixels",  # of the matrix: "pixels" [H · W, C] | "mdistiller" [C · H, W]
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
    }
    RANGES = {
        "K": at_least(1),
        "LAYOUT": one_of("pixels", "mdistiller"),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("maps",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher)
        options = cfg.KDSVD
        self.k = options.K
        self.layout = options.LAYOUT
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        shapes = list(zip(*(stage_shapes(model, cfg.DATASET.INPUT_SIZE)[1:] for model in (student, teacher))))
        self._check(shapes)
        self.translations = nn.ParameterList()
        self.translated = [self.layout == "pixels" and s[1] != t[1] for s, t in shapes]
        for (s, t), differs in zip(shapes, self.translated):
            if differs:
                self.translations.append(nn.Parameter(nn.init.orthogonal_(torch.empty(t[1], s[1]))))

    def _check(self, shapes: List[Tuple[torch.Size, torch.Size]]) -> None:
        if len(shapes) < 2:
            raise UserError("KDSVD relates neighbouring stages, this pair shares only one; use AT or SP")
        widths = [[shape[3] for shape in shapes_of_one] for shapes_of_one in zip(*shapes)]
        if self.layout == "mdistiller" and widths[0] != widths[1]:
            raise UserError(
                f"KDSVD.LAYOUT mdistiller needs stages of equal widths, the student's are {widths[0]} and the teacher's"
                f" {widths[1]} pixels wide; use KDSVD.LAYOUT pixels"
            )
        most = min(self._rank(*shape[1:]) for pair in shapes for shape in pair)
        if not 1 <= self.k <= most:
            raise UserError(f"KDSVD.K is {self.k}; expected 1 to {most}, the least rank of this pair's stages")

    def _rank(self, channels: int, height: int, width: int) -> int:
        return min(channels * height, width) if self.layout == "mdistiller" else min(height * width, channels)

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.translations)

    def get_extra_parameters(self) -> int:
        return sum(p.numel() for p in self.translations)

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits_student, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        remaining = iter(self.translations)
        translations = [next(remaining) if differs else None for differs in self.translated]
        stages_student, stages_teacher = feats_student["feats"][1:], feats_teacher["feats"][1:]
        loss_feat = kdsvd_loss(stages_student, stages_teacher, self.k, translations, self.layout)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits_student.float(), target),
            "loss_kd": self.feat_weight * loss_feat,
        }
