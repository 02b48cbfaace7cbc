"""Heads: what a deployed student uses in place of its own classifier, and how backbone and head are joined.

Shapes: `B` batch, `C_s`/`C_t` channels of the student's final map / of the teacher's pooled feature, `H`/`W` bins of
the final map, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple, Type

from torch import Tensor, nn

from ..errors import UserError
from ..models._adapt import averages_final_map
from ..models._contract import ClassifierModel
from ..registry import Registry
from ._common import InputSize, probe

head_dict: Registry[Type[Head]] = Registry("head")


class HeadOutput(NamedTuple):
    """What a head makes of the final map: `logits [B, N]`, `pooled [B, C_t]`, `projected [B, C_t, H, W]`."""

    logits: Tensor
    pooled: Tensor
    projected: Tensor


class Head(nn.Module):
    """A projector into the teacher's feature space, global average pooling, and the teacher's own classifier, frozen.

    Source: the reused teacher classifier of SimKD, "Knowledge Distillation with the Reused Teacher Classifier" (2022).

    Args:
        projector: maps `[B, C_s, H, W]` to `[B, C_t, H, W]`.
        out_channels: `C_t`, what the teacher's classifier consumes.
        num_classes: `N`.
        bias: whether that classifier has a bias.
        options: plain values with which `head_dict[kind](**options)` builds the same head again.
    """

    kind: str

    def __init__(
        self, projector: nn.Module, out_channels: int, num_classes: int, bias: bool, options: Dict[str, Any]
    ) -> None:
        super().__init__()
        self.options = options
        self.projector = projector
        self.classifier = nn.Linear(out_channels, num_classes, bias=bias).requires_grad_(False)

    @classmethod
    def with_classifier(cls, classifier: nn.Linear, **options: Any) -> Head:
        """Build a head of this kind, with `options`, that ends in a copy of the teacher's classifier."""
        head = cls(
            out_channels=classifier.in_features,
            num_classes=classifier.out_features,
            bias=classifier.bias is not None,
            **options,
        )
        head.copy_classifier(classifier)
        return head

    def copy_classifier(self, classifier: nn.Linear) -> None:
        """Take over the weights of the teacher's classifier."""
        # by parameters, because a classifier may have another shape in its state dict
        self.classifier.load_state_dict(dict(classifier.named_parameters()))

    def forward(self, final_map: Tensor) -> HeadOutput:
        """Classify the student's final map `[B, C_s, H, W]`."""
        projected = self.projector(final_map)
        # what the loss sees is not rounded to autocast's type
        pooled = projected.mean((2, 3), dtype=self.classifier.weight.dtype)
        return HeadOutput(self.classifier(pooled), pooled, projected)


def check_teacher_map(method: str, teacher: Any, input_size: InputSize, remedy: str) -> Tuple[int, int, int]:
    """Return the shape `[C, H, W]` of the teacher's final map, once it can stand before the teacher's own classifier.

    Raises:
        UserError: more than a pooling lies between the two, such as layers that change the channels.
    """
    channels, height, width = probe(teacher, input_size)[1]["final_map"].shape[1:]
    in_features = teacher.get_classifier().in_features
    if channels != in_features:
        raise UserError(
            f"{method} needs a teacher's final map with the {in_features} channels that its classifier consumes,"
            f" this teacher's has {channels}; {remedy}"
        )
    if not averages_final_map(teacher):
        raise UserError(
            f"{method} needs a teacher whose classifier consumes the average of the final map; the 'pooled_feat' of"
            f" this {type(teacher).__name__} is not that average; {remedy}"
        )
    return channels, height, width


def split_forward(student: nn.Module, image: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
    """Run the student up to its final map.

    Returns `(final_map [B, C_s, H, W], pooled [B, C] or None)`: a model of the zoo stops there, without the layers
    that a head makes superfluous; one that has only MDistiller's `forward` runs whole and gives its pooled feature.
    """
    if isinstance(student, ClassifierModel):
        return student.forward_stages(image).final_map, None
    _, feats = student(image)
    return feats["final_map"], feats["pooled_feat"]


def own_logits(student: Any, final_map: Tensor, pooled: Optional[Tensor]) -> Tensor:
    """Return the student's own logits `[B, N]` from what `split_forward` returned; the backbone feels no gradient."""
    if pooled is None:
        return student.forward_tail(final_map.detach())[0]
    return student.get_classifier()(pooled.detach())


def deployed_logits(student: nn.Module, head: Optional[Head], image: Tensor) -> Tensor:
    """Return the logits `[B, N]` that ship: the head's, or the student's own where there is none."""
    return student(image)[0] if head is None else head(split_forward(student, image)[0]).logits


def eval_logits(student: nn.Module, head: Optional[Head], image: Tensor) -> Dict[str, Tensor]:
    """Return logits `[B, N]` by name: `deployed`, and with a head also `probe`, by the student's own classifier."""
    if head is None:
        return {"deployed": student(image)[0]}
    final_map, pooled = split_forward(student, image)
    return {"deployed": head(final_map).logits, "probe": own_logits(student, final_map, pooled)}


class DeployedStudent(nn.Module):
    """What ships: the backbone and its head (`None`: the backbone's own classifier). The teacher is not part of it."""

    def __init__(self, backbone: nn.Module, head: Optional[Head] = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[B, N]` of `image [B, 3, H, W]`."""
        return deployed_logits(self.backbone, self.head, image)

    def forward_eval(self, image: Tensor) -> Dict[str, Tensor]:
        """See `eval_logits`."""
        return eval_logits(self.backbone, self.head, image)
