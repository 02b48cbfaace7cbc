"""Models by name, and their weights.

There are two families, of which `ResNet18`, `ResNet34` and `ResNet50` have a member each: one for small images
(`cifar_model_dict`) and one for large ones (`imagenet_model_dict`). `tiny_imagenet_model_dict` has the models of
`cifar_model_dict`, with another `MobileNetV2`.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Mapping, Optional, Tuple, TypeVar, Union

from torch import nn

from ..errors import UserError, did_you_mean
from ..registry import Registry
from ._adapt import adapt, own_code
from ._contract import ClassifierModel, Stages
from ._weights import load_weights
from .cifar import TeacherCheckpoint, cifar_model_dict, tiny_imagenet_model_dict
from .imagenet import imagenet_model_dict, released_file

FAMILIES: Tuple[Registry[Any], ...] = (cifar_model_dict, tiny_imagenet_model_dict, imagenet_model_dict)
MAX_SMALL_IMAGE = 64  # px: own images above are for the ImageNet family
NATIVE_SIZE = {"imagenet": 224, "tiny_imagenet": 64}  # px, of the images of a data set; 32 of all others
CIFAR = ("cifar10", "cifar100")
OWN_FAMILY = ("imagenet", *CIFAR, "tiny_imagenet")  # data sets that have one family only

Constructor = TypeVar("Constructor", bound=Callable[..., nn.Module])


def register_model(name: str) -> Callable[[Constructor], Constructor]:
    """Decorator: a class or function `(num_classes=…) -> nn.Module` becomes the model `name`, for every data set.

    Its `forward` returns `(logits, feats)`, as `ClassifierModel` does, or logits alone. Of `feats`, the keys `feats`,
    `preact_feats` and `pooled_feat` serve all methods.

    Raises:
        UserError: another model has the name.
    """

    def add(constructor: Constructor) -> Constructor:
        for family in FAMILIES:
            family.check_new(name, constructor)
        entry: Any = (constructor, None)
        cifar_model_dict[name] = tiny_imagenet_model_dict[name] = entry
        imagenet_model_dict[name] = entry[0]
        return constructor

    return add


def build_model(name: str, num_classes: int, dataset: str = "cifar100", input_size: Optional[int] = None) -> nn.Module:
    """Return the model `name` with fresh weights; see `find_model`.

    One that does not derive from `ClassifierModel` gets what the contract asks for, as far as that can be had.

    Args:
        num_classes: outputs of the classifier.

    Raises:
        UserError: no such model, the message lists the nearest names; or one that does not keep to the contract.
    """
    constructor = find_model(name, dataset, input_size)
    with own_code(f"the constructor of {name} fails with num_classes={num_classes}", "or name another model"):
        model = constructor(num_classes=num_classes)
    return adapt(model, name, num_classes, input_size or NATIVE_SIZE.get(dataset, 32))


def find_model(name: str, dataset: str = "cifar100", input_size: Optional[int] = None) -> Callable[..., nn.Module]:
    """Return the constructor `(num_classes=…)` of the model `name` that belongs to a data set.

    "imagenet" has the ImageNet family; "cifar10", "cifar100" and "tiny_imagenet" have the CIFAR family, the last with a
    MobileNetV2 of its own. All other data may have either: images of more than 64 px the ImageNet family's member where
    both have one of that name, smaller ones the CIFAR family's.

    Args:
        dataset: the value of `DATASET.TYPE`.
        input_size: side of the images, in pixels; `None` for the data set's own, which is small where that matters.

    Raises:
        UserError: no such model; the message lists the nearest names.
    """
    return _entry(name, dataset, input_size)[0]


def _entry(name: str, dataset: str, input_size: Optional[int]) -> Tuple[Callable[..., nn.Module], Any]:
    """Return the constructor of a model, and where its released weights lie, `None` if that is not known."""
    own, other = _families(dataset, input_size)
    if name in other and name not in own:
        if dataset in OWN_FAMILY:
            kind = "an ImageNet" if other is imagenet_model_dict else "a CIFAR"
            raise UserError(f"{name} is {kind} model, not one for DATASET.TYPE {dataset}{did_you_mean(name, own)}")
        own = other
    entry = own[name]
    constructor, teacher = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
    if not callable(constructor):
        raise UserError(
            f"the model {name} is registered as {entry!r}; expected a constructor, or (constructor, checkpoint or None)"
        )
    return constructor, teacher


def _families(dataset: str, input_size: Optional[int]) -> Tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the family whose members a data set prefers, and the other."""
    if dataset == "tiny_imagenet":
        return tiny_imagenet_model_dict, imagenet_model_dict
    # `read_options` refuses a size that is not a number
    large_images = isinstance(input_size, int) and input_size > MAX_SMALL_IMAGE
    if dataset == "imagenet" or (large_images and dataset not in CIFAR):
        return imagenet_model_dict, cifar_model_dict
    return cifar_model_dict, imagenet_model_dict


def released_teacher(
    name: str, dataset: str = "cifar100", input_size: Optional[int] = None
) -> Union[str, os.PathLike, None]:
    """Return where released weights of the model `name` are to be, `None` if there are none; see `find_model`.

    Those for ImageNet are torchvision's, which are downloaded if they are not there. The others are of CIFAR-100, and
    come with mdistiller-fetch-ckpts.

    Raises:
        UserError: no such model, or weights for ImageNet that cannot be had.
    """
    _, teacher = _entry(name, dataset, input_size)
    if teacher is None and dataset == "imagenet":
        return released_file(name)
    return None if isinstance(teacher, TeacherCheckpoint) and dataset != "cifar100" else teacher


__all__ = [
    "ClassifierModel",
    "Stages",
    "build_model",
    "cifar_model_dict",
    "find_model",
    "imagenet_model_dict",
    "load_weights",
    "register_model",
    "released_teacher",
    "tiny_imagenet_model_dict",
]
