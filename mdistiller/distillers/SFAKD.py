"""SFAKD: Smoothed Frequency Augmentation for Knowledge Distillation.

Source: "Smooth the Signal, Distill the Essence: A Frequency-Aware Modulation Framework for Knowledge Distillation"
(2025).

Paper and published code differ in four points. The defaults follow the paper. The settings in brackets, which are those
of `configs/cifar100/sfakd_code/`, follow the code, which produced the published accuracies.

- The paper aligns pooled features, the code aligns maps (`ALIGN: map`).
- The code also averages the squared error over the channels. Here it is summed over them, so the code's loss has
  `FEAT_WEIGHT: 1 / C_t`. The paper gives no weight; the default comes from a small measurement.
- The code's filter is initialised near zero (`FILTER_INIT: uniform`). The paper does not specify the initialisation;
  the default is the identity.
- For a WRN the code uses the last block's raw output as the final map. Here it is always the activated map, which the
  classifier pools.

Here shapes are inferred, and the head is saved with the student.

Shapes: `B` batch, `C_s`/`C_t` channels of the student's final map / of the teacher's pooled feature, `H`/`W` height and
width of the student's final map, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UserError
from ..ranges import YES_NO_OR_NONE, above, one_of, weights
from ._base import Distiller, register
from ._common import match_size, probe
from ._spectral import FrequencyBranch
from ._spectral import FrequencyFilter as FrequencyFilter
from ._spectral import HighPass as HighPass
from .heads import Head, HeadOutput, check_teacher_map, ends_in_relu, head_dict, own_logits, split_forward


def pooled_alignment_loss(pooled_student: Tensor, pooled_teacher: Tensor) -> Tensor:
    """Return the scalar mean over images of `‖p − t‖²`.

    The squared error is summed over channels. An average over channels would make its gradients `C_t` times smaller.

    Args:
        pooled_student: `p`, `[B, C_t]`, floating point.
        pooled_teacher: `t`, `[B, C_t]`, floating point.
    """
    return (pooled_student.float() - pooled_teacher.float()).square().sum(1).mean()


def map_alignment_loss(map_student: Tensor, map_teacher: Tensor) -> Tensor:
    """Return the scalar squared error of two maps, summed over channels and averaged over images and positions.

    Args:
        map_student: `[B, C_t, H_s, W_s]`, floating point.
        map_teacher: `[B, C_t, H_t, W_t]`, floating point. The larger map is average-pooled to the size of the smaller.
    """
    student, teacher = match_size(map_student.float(), map_teacher.float())
    return (student - teacher).square().sum(1).mean()


class SpatialBranch(nn.Conv2d):
    """`F_spat = Conv1×1(F)`, `C_s → C_s`, with bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=1)

    def forward(self, feature: Tensor, weight: Union[float, Tensor] = 1.0) -> Tensor:
        """Return `weight · F_spat` of `feature [B, C_s, H, W]`, of the same shape."""
        assert self.bias is not None
        return F.conv2d(feature, weight * self.weight, weight * self.bias)


class Fusion(nn.Module):
    """`A = α · F_freq + β · F_spat` with learnable weights, both initialised to 0.5.

    Args:
        frequency: the branch that computes `F_freq`; `None` to omit it.
        spatial: the branch that computes `F_spat`; `None` to omit it.
    """

    def __init__(self, frequency: Optional[nn.Module], spatial: Optional[nn.Module]) -> None:
        super().__init__()
        self.frequency = frequency
        self.spatial = spatial
        self.alpha = None if frequency is None else nn.Parameter(torch.tensor(0.5))
        self.beta = None if spatial is None else nn.Parameter(torch.tensor(0.5))

    def forward(self, feature: Tensor) -> Tensor:
        """Return `A` for `feature [B, C_s, H, W]`, of the same shape."""
        # each branch applies its weight to its parameters, which are smaller than the maps
        branches = ((self.spatial, self.beta), (self.frequency, self.alpha))
        parts = [branch(feature, weight) for branch, weight in branches if branch is not None]
        return sum(parts[1:], parts[0])


class BottleneckProjector(nn.Sequential):
    """Adaptive bottleneck `C_s → m → C_t`, `m = ⌊(C_s + C_t) / 2⌋`, with a depthwise separable 3×3 convolution.

    `relu` is whether it ends in a ReLU, which keeps the output from being negative.
    """

    def __init__(self, in_channels: int, out_channels: int, relu: bool = True) -> None:
        mid = (in_channels + out_channels) // 2
        super().__init__(
            nn.Conv2d(in_channels, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, padding=1, groups=mid, bias=False),
            nn.Conv2d(mid, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            *([nn.ReLU(inplace=True)] if relu else []),
        )


@head_dict.register("SFAKD")
class SFAKDHead(Head):
    """Fusion of the two branches, bottleneck projector, pooling and the teacher's classifier.

    Args:
        in_channels, height, width: `C_s`, `H`, `W` of the student's final map.
        out_channels, num_classes, bias: `C_t`, `N` and bias of the teacher's classifier.
        sigma, learnable_sigma, mask: see `HighPass`; `mask` is its `kind`.
        frequency, spatial: whether to use each branch; at least one.
        filter_init: see `FrequencyFilter`.
        relu: whether the projector ends in a ReLU.
    """

    kind = "SFAKD"

    def __init__(
        self,
        in_channels: int,
        height: int,
        width: int,
        out_channels: int,
        num_classes: int,
        bias: bool = True,
        sigma: float = 0.1,
        learnable_sigma: bool = False,
        frequency: bool = True,
        spatial: bool = True,
        mask: str = "gaussian",
        filter_init: str = "identity",
        relu: bool = True,
    ) -> None:
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        fusion = Fusion(
            FrequencyBranch(in_channels, height, width, sigma, learnable_sigma, mask, filter_init)
            if frequency
            else None,
            SpatialBranch(in_channels) if spatial else None,
        )
        projector = nn.Sequential()
        projector.add_module("fusion", fusion)
        projector.add_module("bottleneck", BottleneckProjector(in_channels, out_channels, relu))
        super().__init__(projector, out_channels, num_classes, bias, options)
        self.map_size = (height, width)

    def forward(self, final_map: Tensor) -> HeadOutput:
        if tuple(final_map.shape[-2:]) != self.map_size:
            raise UserError(
                f"the student's final map is {tuple(final_map.shape[-2:])}, this SFAKD head was built for"
                f" {self.map_size}: its filter has one weight per frequency; give images of the size it was trained on"
            )
        return super().forward(final_map)


@register("SFAKD")
class SFAKD(Distiller):
    """L2 alignment of the student's projected, frequency-augmented feature with the teacher's.

    With `CLASSIFIER: teacher` (the default, as published) the deployed student consists of backbone, head and the
    teacher's classifier. The student's own classifier is trained as a probe on detached features. With
    `CLASSIFIER: student` the bare student is deployed. Its own classifier is trained by cross-entropy, the alignment
    regularises the backbone, and the head is dropped after training.
    """

    DEFAULTS = {
        "FEAT_WEIGHT": 0.1,  # weight of the alignment loss
        "CE_WEIGHT": 0.0,  # weight of the cross-entropy on the deployed logits
        "MASK": {"TYPE": "gaussian"},  # "gaussian" | "hard" | "none"
        "SIGMA": 0.1,  # the Gaussian's σ, or the hard cut's radius, relative to the smaller side of the map
        "LEARNABLE_SIGMA": False,  # train SIGMA
        "FILTER_INIT": "identity",  # "identity" | "uniform", as in the authors' code
        "FREQUENCY_BRANCH": True,  # use the frequency branch
        "SPATIAL_BRANCH": True,  # use the spatial branch
        "ALIGN": "pooled",  # "pooled" | "map"
        "CLASSIFIER": "teacher",  # "teacher" | "student"
        "PROJECTOR_RELU": None,  # end the projector in a ReLU; None: unless the teacher's feature can be negative
    }
    RANGES = {
        "MASK.TYPE": one_of("gaussian", "hard", "none"),
        "SIGMA": above(0, example=" (0.1 is the default)"),
        "FILTER_INIT": one_of("identity", "uniform"),
        "ALIGN": one_of("pooled", "map"),
        "CLASSIFIER": one_of("teacher", "student"),
        "PROJECTOR_RELU": YES_NO_OR_NONE,
        **weights("FEAT_WEIGHT", "CE_WEIGHT"),
    }
    teacher_needs = ("pooled",)

    def __init__(self, student: nn.Module, teacher: Any, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        options = cfg.SFAKD
        self.feat_weight = options.FEAT_WEIGHT
        self.ce_weight = options.CE_WEIGHT
        self.align = options.ALIGN
        if self.align == "map":
            self.teacher_needs = ("maps",)

        input_size = cfg.DATASET.INPUT_SIZE
        classifier = teacher.get_classifier()
        _, in_channels, height, width = probe(student, input_size)[1]["final_map"].shape
        if self.align == "map":
            check_teacher_map("SFAKD.ALIGN map", teacher, input_size, remedy="use SFAKD.ALIGN pooled")
        imitated = "final_map" if self.align == "map" else "pooled_feat"
        aligner = SFAKDHead.with_classifier(
            classifier,
            in_channels=in_channels,
            height=height,
            width=width,
            sigma=options.SIGMA,
            learnable_sigma=options.LEARNABLE_SIGMA,
            frequency=options.FREQUENCY_BRANCH,
            spatial=options.SPATIAL_BRANCH,
            mask=options.MASK.TYPE,
            filter_init=options.FILTER_INIT,
            relu=ends_in_relu(options.PROJECTOR_RELU, teacher, input_size, imitated),
        )
        if options.CLASSIFIER == "teacher":
            self.head = aligner
        else:
            self.aligner = aligner

    @classmethod
    def config_errors(cls, options: Any, section: str) -> Iterator[str]:
        yield from super().config_errors(options, section)
        if options.LEARNABLE_SIGMA and options.MASK.TYPE in ("hard", "none"):
            yield (
                f"{section}.LEARNABLE_SIGMA needs {section}.MASK.TYPE gaussian, given {options.MASK.TYPE}; switch one"
            )
        if not (options.FREQUENCY_BRANCH or options.SPATIAL_BRANCH):
            yield f"{section}.FREQUENCY_BRANCH and {section}.SPATIAL_BRANCH are both off; switch at least one on"
        if options.CLASSIFIER == "student" and options.CE_WEIGHT == 0:
            yield (
                f"{section}.CLASSIFIER student trains the student's own classifier by cross-entropy, but"
                f" {section}.CE_WEIGHT is 0; set it, for example to 1.0"
            )

    @classmethod
    def loss_names(cls, options: Any) -> Tuple[str, ...]:
        probe = ("loss_probe",) if options.CLASSIFIER == "teacher" else ()
        return (*probe, "loss_feat", *(("loss_ce",) if options.CE_WEIGHT else ()))

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        extra = [] if self.head is not None else [p for p in self.aligner.parameters() if p.requires_grad]
        return super().get_learnable_parameters() + extra

    def get_extra_parameters(self) -> int:
        return sum(p.numel() for p in (self.head or self.aligner).parameters())

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        losses = {}
        if self.head is None:
            logits, feats = self.student(image)
            output = self.aligner(feats["final_map"])
        else:
            final_map, pooled = split_forward(self.student, image)
            output = self.head(final_map)
            logits = output.logits
            losses["loss_probe"] = F.cross_entropy(own_logits(self.student, final_map, pooled).float(), target)
        losses["loss_feat"] = self.feat_weight * self._alignment_loss(output, feats_teacher)
        if self.ce_weight:
            losses["loss_ce"] = self.ce_weight * F.cross_entropy(logits.float(), target)
        return logits, losses

    def _alignment_loss(self, output: HeadOutput, feats_teacher: Dict[str, Any]) -> Tensor:
        if self.align == "map":
            return map_alignment_loss(output.projected, feats_teacher["final_map"])
        return pooled_alignment_loss(output.pooled, feats_teacher["pooled_feat"])
