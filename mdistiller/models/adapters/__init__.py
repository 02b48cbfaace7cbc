"""Models by name that are not of the zoo: of timm, of torchvision, and the user's own.

A library's module has `check_name`, `build`, `pretrained` (its own weights) and `own_input` (the images that they were
trained with).
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from torch import Tensor, nn

from ...errors import UserError
from . import timm_models, torchvision_models, user_models
from .new_head import replace_classifier
from .own_input import InputSpec

LIBRARIES: Dict[str, Any] = {"timm": timm_models, "torchvision": torchvision_models}


def library_of(name: str) -> str:
    """Return `timm`, `torchvision`, `user` for a model of the user's own, or an empty string for one of the zoo."""
    if user_models.parts_of(name) is not None:
        return "user"
    library, slash, _ = name.partition("/")
    return library if slash and library in LIBRARIES else ""


def check_name(name: str) -> None:
    """Raise a UserError if there is no such model; a user's module or file is imported."""
    if library_of(name) == "user":
        user_models.find_constructor(name)
    else:
        library, _, model = name.partition("/")
        LIBRARIES[library].check_name(model)


def build(
    name: str,
    num_classes: int,
    input_size: int,
    arguments: Mapping[str, Any],
    features: Optional[Mapping[str, Any]],
    new_head: bool = False,
) -> nn.Module:
    """Build a model with fresh weights and the outputs of `ClassifierModel`.

    Args:
        name: the name of a model of a library or of the user.
        num_classes: the number of outputs of the classifier.
        input_size: the side of the images in pixels.
        arguments: the keyword arguments of the constructor.
        features: the names of modules; see `user_models.adapt`.
        new_head: see `build_model`.

    Raises:
        UserError: the constructor fails, or the model does not fit these images or the number of classes.
    """
    library, _, model_name = name.partition("/")
    kind = library_of(name)
    if kind == "user":
        model = user_models.build(name, num_classes, input_size, arguments)
        if new_head:
            replace_classifier(model, name, num_classes, input_size, features)
    else:
        model = LIBRARIES[library].build(model_name, num_classes, input_size, arguments)
    if kind != "timm":
        return user_models.adapt(model, name, num_classes, input_size, features)
    if features:
        raise UserError(f"the features of {name} come from timm itself; leave STUDENT_FEATURES or TEACHER_FEATURES out")
    return timm_models.with_outputs(model, name, num_classes, input_size)


def library_weights(name: str, input_size: int, arguments: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Return the weights that the library of a model releases.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    library, _, model = name.partition("/")
    if library_of(name) == "user":
        raise UserError(f"{name} has no library that releases weights; load them in its constructor, or give a file")
    return LIBRARIES[library].pretrained(model, input_size, arguments)


def library_input(name: str) -> Optional[InputSpec]:
    """Return the `InputSpec` of the library's own weights, or `None` for a model that is not from a library."""
    library, _, model = name.partition("/")
    return LIBRARIES[library].own_input(model) if library_of(name) in LIBRARIES else None
