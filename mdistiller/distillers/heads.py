"""Heads, which replace a student's own classifier when it is deployed, and the deployed student itself.

Shapes: `B` batch, `C_s`/`C_t` channels of the student's final map / of the teacher's pooled feature, `H`/`W` height and
width of the final map, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple, Type

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models._adapt import averages_final_map, evaluation_mode
from ..models._contract import ClassifierModel
from ..registry import Registry
from ._common import InputSize, blank_outputs, resolve_input_size

PROBES = 8  # images that show whether the teacher's features can be negative

head_dict: Registry[Type[Head]] = Registry("head")


class HeadOutput(NamedTuple):
    """The outputs of a head: `logits [B, N]`, `pooled [B, C_t]`, `projected [B, C_t, H, W]`."""

    logits: Tensor
    pooled: Tensor
    projected: Tensor


class Head(nn.Module):
    """A projector into the teacher's feature space, global average pooling, and the teacher's frozen classifier.

    Source: SimKD, "Knowledge Distillation with the Reused Teacher Classifier" (2022).

    Args:
        projector: a module that maps `[B, C_s, H, W]` to `[B, C_t, H, W]`.
        out_channels: the number of input channels of the teacher's classifier, `C_t`.
        num_classes: the number of classes, `N`.
        bias: whether the teacher's classifier has a bias.
        options: plain values from which `head_dict[kind](**options)` rebuilds the head.
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
        """Build a head that ends in a copy of the teacher's classifier; `options` go to the constructor."""
        head = cls(
            out_channels=classifier.in_features,
            num_classes=classifier.out_features,
            bias=classifier.bias is not None,
            **options,
        )
        head.copy_classifier(classifier)
        return head

    def copy_classifier(self, classifier: nn.Linear) -> None:
        """Copy the weights of the teacher's classifier, which may be parametrized (weight norm, for example)."""
        with torch.no_grad():
            self.classifier.weight.copy_(classifier.weight)
            if classifier.bias is not None:
                self.classifier.bias.copy_(classifier.bias)

    def forward(self, final_map: Tensor) -> HeadOutput:
        """Classify the student's final map `[B, C_s, H, W]`."""
        projected = self.projector(final_map)
        # in the weights' type, because autocast's would round the input of the loss
        pooled = projected.mean((2, 3), dtype=self.classifier.weight.dtype)
        return HeadOutput(classify(self.classifier, pooled), pooled, projected)


def classify(classifier: nn.Linear, pooled: Tensor) -> Tensor:
    """Return the logits `[B, N]` of a pooled feature `[B, C]` in the type of the weights, also under autocast."""
    with torch.autocast(pooled.device.type, enabled=False):
        return classifier(pooled.to(classifier.weight.dtype))


def ends_in_relu(choice: Optional[bool], teacher: nn.Module, input_size: InputSize, key: str) -> bool:
    """Return whether a projector into the teacher's feature space should end in a ReLU.

    By default it does if none of the teacher's outputs for a few images is negative.

    Args:
        choice: the configured value; `None` to look at the teacher's outputs for a few images of fixed noise.
        teacher: the teacher, with its weights.
        input_size: the size of the images, in pixels.
        key: the output that the projector imitates, `pooled_feat` or `final_map`.
    """
    if choice is not None:
        return choice
    height, width = resolve_input_size(None, input_size, "DATASET.INPUT_SIZE")
    images = torch.randn(PROBES, 3, height, width, generator=torch.Generator().manual_seed(0))
    first = next(teacher.parameters())
    with evaluation_mode(teacher):
        return bool(teacher(images.to(first.device, first.dtype))[1][key].min() >= 0)


def check_teacher_map(method: str, teacher: Any, input_size: InputSize, remedy: str) -> Tuple[int, int, int]:
    """Return the shape `[C, H, W]` of the teacher's final map.

    Raises:
        UserError: the input of the teacher's classifier is not the average of that map, for example because there are
            layers between the two.
    """
    channels, height, width = blank_outputs(teacher, input_size)[1]["final_map"].shape[1:]
    in_features = teacher.get_classifier().in_features
    if channels != in_features:
        raise UserError(
            f"{method} needs a teacher's final map with the {in_features} channels that its classifier consumes,"
            f" this teacher's has {channels}; {remedy}"
        )
    changes_map = isinstance(teacher, ClassifierModel) and type(teacher).forward_map is not ClassifierModel.forward_map
    if changes_map or not averages_final_map(teacher):
        raise UserError(
            f"{method} needs a teacher whose classifier consumes the average of the final map; the 'pooled_feat' of"
            f" this {type(teacher).__name__} is not that average; {remedy}"
        )
    return channels, height, width


def split_forward(student: nn.Module, image: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
    """Run the student up to its final map.

    A `ClassifierModel` stops there and skips the layers that a head replaces. Any other model runs completely.

    Returns:
        `(final_map [B, C_s, H, W], pooled)`; `pooled` is the pooled feature `[B, C]`, or `None` for a model with a
        `forward_tail`.
    """
    if isinstance(student, ClassifierModel):
        return student.forward_stages(image).final_map, None
    _, feats = student(image)
    return feats["final_map"], None if getattr(student, "has_tail", False) else feats["pooled_feat"]


def own_logits(student: Any, final_map: Tensor, pooled: Optional[Tensor]) -> Tensor:
    """Return the logits `[B, N]` of the student's own classifier, without a gradient to the backbone.

    Args:
        student: the model.
        final_map, pooled: the values that `split_forward` returned.
    """
    if pooled is None:
        return student.forward_tail(final_map.detach())[0]
    return classify(student.get_classifier(), pooled.detach())


def deployed_logits(student: nn.Module, head: Optional[Head], image: Tensor) -> Tensor:
    """Return the logits `[B, N]` of the head, or of the student's own classifier if `head` is `None`."""
    return student(image)[0] if head is None else head(split_forward(student, image)[0]).logits


def eval_logits(student: nn.Module, head: Optional[Head], image: Tensor) -> Dict[str, Tensor]:
    """Return logits `[B, N]` by name: `deployed`; with a head also `probe`, those of the student's own classifier."""
    if head is None:
        return {"deployed": student(image)[0]}
    final_map, pooled = split_forward(student, image)
    return {"deployed": head(final_map).logits, "probe": own_logits(student, final_map, pooled)}


class DeployedStudent(nn.Module):
    """The model to deploy: the backbone and its head, without the teacher.

    Args:
        backbone: the student.
        head: its head; `None` for the backbone's own classifier.
    """

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
