"""Models for large images: ImageNet and similar data."""

from __future__ import annotations

from typing import Callable

from ...registry import Registry
from .._contract import ClassifierModel
from ._pretrained import released_file
from .mobilenetv1 import MobileNetV1
from .resnet import ResNet18, ResNet34, ResNet50, ResNet101

# name -> constructor(pretrained=False, num_classes=1000)
imagenet_model_dict: Registry[Callable[..., ClassifierModel]] = Registry("ImageNet model")

for _constructor in (ResNet18, ResNet34, ResNet50, ResNet101, MobileNetV1):
    imagenet_model_dict[_constructor.__name__] = _constructor

__all__ = ["imagenet_model_dict", "released_file"]
