"""Models by name, and their weights."""

from __future__ import annotations

from typing import Callable

from torch import nn

from ..registry import Registry
from ._contract import ClassifierModel, Stages
from ._weights import load_weights
from .cifar import cifar_model_dict, tiny_imagenet_model_dict

# name -> constructor(pretrained=False, num_classes=1000); filled by mdistiller/models/imagenet once it exists
imagenet_model_dict: Registry[Callable[..., nn.Module]] = Registry("ImageNet model")


def build_model(name: str, num_classes: int, dataset: str = "cifar100") -> nn.Module:
    """Return the model `name` with fresh weights.

    Args:
        name: a key of the dictionary that belongs to `dataset`.
        num_classes: outputs of the classifier.
        dataset: the value of `DATASET.TYPE`. "imagenet" and "tiny_imagenet" have their own dictionaries, all other data
            share CIFAR's.

    Raises:
        UserError: no such model; the message lists the nearest names.
    """
    if dataset == "imagenet":
        return imagenet_model_dict[name](num_classes=num_classes)
    entries = tiny_imagenet_model_dict if dataset == "tiny_imagenet" else cifar_model_dict
    constructor, _ = entries[name]
    return constructor(num_classes=num_classes)


__all__ = [
    "ClassifierModel",
    "Stages",
    "build_model",
    "cifar_model_dict",
    "imagenet_model_dict",
    "load_weights",
    "tiny_imagenet_model_dict",
]
