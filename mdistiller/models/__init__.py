"""Models by name, and their weights.

A name is one of the zoo, or `timm/<name>`, `torchvision/<name>`, `my_package.models:make` or `path/to/file.py:make`;
see `adapters/`. The zoo has two families of models: one for small images (`cifar_model_dict`) and one for large images
(`imagenet_model_dict`). Both have a `ResNet18`, a `ResNet34` and a `ResNet50`. `tiny_imagenet_model_dict` has the
models of `cifar_model_dict`, but another `MobileNetV2`.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Mapping, Optional, Tuple, TypeVar, Union

from torch import nn

from ..errors import UserError, did_you_mean
from ..registry import Registry
from . import adapters
from ._adapt import user_code_errors
from ._contract import ClassifierModel, Stages
from ._weights import load_weights
from .adapters import library_input, library_of, library_weights
from .adapters.own_input import InputSpec, give_own_input, own_input_of
from .adapters.user_models import adapt, may_build, parts_of, portable_name, same_model
from .cifar import TeacherCheckpoint, cifar_model_dict, tiny_imagenet_model_dict
from .imagenet import imagenet_model_dict, released_file

FAMILIES: Tuple[Registry[Any], ...] = (cifar_model_dict, tiny_imagenet_model_dict, imagenet_model_dict)
MAX_SMALL_IMAGE = 64  # pixels; a user's own larger images prefer the ImageNet family
IMAGE_SIZES = {"imagenet": 224, "tiny_imagenet": 64}  # pixels, by data set; all others have 32
CIFAR = ("cifar10", "cifar100")
SINGLE_FAMILY_DATASETS = ("imagenet", *CIFAR, "tiny_imagenet")  # other data sets may use models of both families

Constructor = TypeVar("Constructor", bound=Callable[..., nn.Module])


def register_model(name: str) -> Callable[[Constructor], Constructor]:
    """Return a decorator that registers a class or function `(num_classes=…) -> nn.Module` for every data set.

    The model's `forward` returns `(logits, feats)`, as that of `ClassifierModel` does, or only logits. With the keys
    `feats`, `preact_feats` and `pooled_feat` in `feats` it works with all methods.

    Raises:
        UserError: another model has this name.
    """

    def add(constructor: Constructor) -> Constructor:
        for family in FAMILIES:
            family.check_new(name, constructor)
        entry: Any = (constructor, None)
        cifar_model_dict[name] = tiny_imagenet_model_dict[name] = entry
        imagenet_model_dict[name] = entry[0]
        return constructor

    return add


def build_model(
    name: str,
    num_classes: int,
    dataset: str = "cifar100",
    input_size: Optional[int] = None,
    arguments: Optional[Mapping[str, Any]] = None,
    features: Optional[Mapping[str, Any]] = None,
    new_head: bool = False,
) -> nn.Module:
    """Build the model `name` with fresh weights.

    A model that is not a `ClassifierModel` gets the missing methods and outputs, as far as possible; see `adapters/`.

    Args:
        name, dataset, input_size: see `find_model`.
        num_classes: the number of outputs of the classifier.
        arguments: further keyword arguments of the constructor.
        features: a dict with the keys `classifier`, `final_map` and `feats`, each optional, and as values the names of
            the modules that compute these outputs. It is for models that return logits alone; by default the modules
            are found.
        new_head: whether a user's own model that has another number of classes gets a new classifier, with a note.

    Raises:
        UserError: the model is unknown (the message lists the nearest names), its constructor fails, or it returns
            something unexpected.
    """
    arguments, size = dict(arguments or {}), input_size or IMAGE_SIZES.get(dataset, 32)
    if "num_classes" in arguments:
        raise UserError(
            f"the arguments of {name} contain num_classes, which is always that of the data set; leave it out"
        )
    if library_of(name):
        return adapters.build(name, num_classes, size, arguments, features, new_head)
    constructor = find_model(name, dataset, input_size)
    words = "".join(f", {key}={value!r}" for key, value in arguments.items())
    what = f"the constructor of {name} fails with num_classes={num_classes}{words}"
    with user_code_errors(what, "or name another model"):
        model = constructor(num_classes=num_classes, **arguments)
    return adapt(model, name, num_classes, size, features)


def check_model(name: str, dataset: str = "cifar100", input_size: Optional[int] = None) -> None:
    """Raise a UserError if a data set has no model of this name.

    If the name is that of a user's own module or file, this function imports it.

    Args:
        name: the name of a model of any kind.
        dataset, input_size: see `find_model`.
    """
    if library_of(name):
        adapters.check_name(name)
    else:
        find_model(name, dataset, input_size)


def find_model(name: str, dataset: str = "cifar100", input_size: Optional[int] = None) -> Callable[..., nn.Module]:
    """Return the constructor `(num_classes=…)` of the zoo's model `name` for a data set.

    "imagenet" uses the ImageNet family. "cifar10", "cifar100" and "tiny_imagenet" use the CIFAR family; "tiny_imagenet"
    has its own MobileNetV2. All other data may use both families. If both have a model of this name, images of more
    than 64 pixels get the ImageNet family's, and smaller images the CIFAR family's.

    Args:
        name: the name of the model.
        dataset: the value of `DATASET.TYPE`.
        input_size: side of the images in pixels; `None` for the data set's own size. A data set other than the four
            above then counts as one of small images.

    Raises:
        UserError: the model is unknown; the message lists the nearest names.
    """
    return _entry(name, dataset, input_size)[0]


def _entry(name: str, dataset: str, input_size: Optional[int]) -> Tuple[Callable[..., nn.Module], Any]:
    """Return the constructor of a model and the path of its released weights, or `None` if that is unknown."""
    own, other = _families(dataset, input_size)
    if ".py" in name:
        raise UserError(f"{name!r} names no function; a model of your own is named path/to/file.py:make_model")
    if name in other and name not in own:
        if dataset in SINGLE_FAMILY_DATASETS:
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
    """Return the family that a data set prefers, and the other family."""
    if dataset == "tiny_imagenet":
        return tiny_imagenet_model_dict, imagenet_model_dict
    # an invalid input_size is reported by `read_options`
    large_images = isinstance(input_size, int) and input_size > MAX_SMALL_IMAGE
    if dataset == "imagenet" or (large_images and dataset not in CIFAR):
        return imagenet_model_dict, cifar_model_dict
    return cifar_model_dict, imagenet_model_dict


def released_teacher(
    name: str, dataset: str = "cifar100", input_size: Optional[int] = None
) -> Union[str, os.PathLike, None]:
    """Return the path of the released weights of the zoo's model `name`, or `None` if none are released.

    The weights for ImageNet are torchvision's; missing files are downloaded. The others are for CIFAR-100; get them
    with mdistiller-fetch-ckpts.

    Args:
        name, dataset, input_size: see `find_model`.

    Raises:
        UserError: the model is unknown, or the ImageNet weights are not released or cannot be downloaded.
    """
    if library_of(name):
        return None
    _, teacher = _entry(name, dataset, input_size)
    if teacher is None and dataset == "imagenet":
        return released_file(name)
    return None if isinstance(teacher, TeacherCheckpoint) and dataset != "cifar100" else teacher


__all__ = [
    "ClassifierModel",
    "InputSpec",
    "Stages",
    "build_model",
    "check_model",
    "cifar_model_dict",
    "find_model",
    "give_own_input",
    "imagenet_model_dict",
    "library_input",
    "library_of",
    "library_weights",
    "load_weights",
    "may_build",
    "own_input_of",
    "parts_of",
    "portable_name",
    "register_model",
    "released_teacher",
    "same_model",
    "tiny_imagenet_model_dict",
]
