"""Models for small images (CIFAR, Tiny-ImageNet, similar data), and the paths of their released teachers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

from ...paths import ckpt_root
from ...registry import Registry
from .._contract import ClassifierModel
from .mobilenetv2 import MobileNetV2
from .mobilenetv2_full import FullMobileNetV2
from .resnet import resnet8, resnet8x4, resnet14, resnet20, resnet32, resnet32x4, resnet44, resnet56, resnet110
from .resnetv2 import ResNet18, ResNet34, ResNet50
from .shufflenetv1 import ShuffleV1
from .shufflenetv2 import ShuffleV2
from .vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from .wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2


@dataclass(frozen=True)
class TeacherCheckpoint(os.PathLike):
    """The path of a released teacher; `paths.ckpt_root()` is read when the path is used.

    `torch.load`, `open`, `Path` and `str` accept it.

    Attributes:
        relative: the path relative to `paths.ckpt_root()`.
    """

    relative: str

    def __fspath__(self) -> str:
        return str(ckpt_root().absolute() / self.relative)

    def __str__(self) -> str:
        return self.__fspath__()


Entry = Tuple[Callable[..., ClassifierModel], Optional[TeacherCheckpoint]]

RELEASED_TEACHERS = ("resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13")

# name -> (constructor(num_classes=100), teacher checkpoint or None); the two differ in MobileNetV2
cifar_model_dict: Registry[Entry] = Registry("CIFAR model")
tiny_imagenet_model_dict: Registry[Entry] = Registry("Tiny-ImageNet model")

CONSTRUCTORS: Tuple[Callable[..., ClassifierModel], ...] = (
    *(resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, resnet110, resnet8x4, resnet32x4),
    *(ResNet18, ResNet34, ResNet50),
    *(wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2),
    *(vgg8, vgg11, vgg13, vgg16, vgg19),
    *(MobileNetV2, ShuffleV1, ShuffleV2),
)

for _constructor in CONSTRUCTORS:
    _name = _constructor.__name__
    _teacher = TeacherCheckpoint(f"cifar_teachers/{_name}_vanilla/ckpt_epoch_240.pth")
    cifar_model_dict[_name] = (_constructor, _teacher if _name in RELEASED_TEACHERS else None)
    tiny_imagenet_model_dict[_name] = (FullMobileNetV2 if _constructor is MobileNetV2 else _constructor, None)
