"""Models by name, and their weights.

There are two families, of which `ResNet18`, `ResNet34` and `ResNet50` have a member each: one for small images
(`cifar_model_dict`, the same models in `tiny_imagenet_model_dict`) and one for large ones (`imagenet_model_dict`).
"""

from __future__ import annotations

import os
from typing import Any, Callable, Mapping, Optional, Tuple, Union

from torch import nn

from ..errors import UserError, did_you_mean
from ._contract import ClassifierModel, Stages
from ._weights import load_weights
from .cifar import cifar_model_dict, tiny_imagenet_model_dict
from .imagenet import imagenet_model_dict, released_file

LARGEST_SMALL_IMAGE = 64  # px: own images above are for the ImageNet family
OWN_FAMILY = ("imagenet", "cifar100", "tiny_imagenet")  # data sets that have one family only


def build_model(name: str, num_classes: int, dataset: str = "cifar100", input_size: Optional[int] = None) -> nn.Module:
    """Return the model `name` with fresh weights; see `find_model`.

    Args:
        num_classes: outputs of the classifier.

    Raises:
        UserError: no such model; the message lists the nearest names.
    """
    return find_model(name, dataset, input_size)(num_classes=num_classes)


def find_model(name: str, dataset: str = "cifar100", input_size: Optional[int] = None) -> Callable[..., nn.Module]:
    """Return the constructor `(num_classes=…)` of the model `name` that belongs to a data set.

    "imagenet" has the ImageNet family, "cifar100" and "tiny_imagenet" have the CIFAR family. All other data may have
    either: images of more than 64 px the ImageNet family's member where both have one of that name, smaller ones the
    CIFAR family's.

    Args:
        dataset: the value of `DATASET.TYPE`.
        input_size: side of the images, in pixels; `None` for the data set's own, which is small where that matters.

    Raises:
        UserError: no such model; the message lists the nearest names.
    """
    own, other = _families(dataset, input_size)
    if name in other and name not in own:
        if dataset in OWN_FAMILY:
            kind = "an ImageNet" if other is imagenet_model_dict else "a CIFAR"
            raise UserError(f"{name} is {kind} model, not one for DATASET.TYPE {dataset}{did_you_mean(name, own)}")
        own = other
    entry = own[name]
    return entry[0] if isinstance(entry, tuple) else entry


def _families(dataset: str, input_size: Optional[int]) -> Tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the family whose members a data set prefers, and the other."""
    if dataset == "tiny_imagenet":
        return tiny_imagenet_model_dict, imagenet_model_dict
    # a size that is no number is refused later, by what reads the data
    large_images = isinstance(input_size, int) and input_size > LARGEST_SMALL_IMAGE
    if dataset == "imagenet" or (large_images and dataset != "cifar100"):
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
    constructor = find_model(name, dataset, input_size)
    if dataset == "imagenet":
        return released_file(name)
    small, teacher = cifar_model_dict.get(name, (None, None))
    return teacher if constructor is small and dataset != "tiny_imagenet" else None


__all__ = [
    "ClassifierModel",
    "Stages",
    "build_model",
    "cifar_model_dict",
    "find_model",
    "imagenet_model_dict",
    "load_weights",
    "released_teacher",
    "tiny_imagenet_model_dict",
]
