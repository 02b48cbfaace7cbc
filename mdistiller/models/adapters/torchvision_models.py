"""torchvision's classification models: `torchvision/<name>`, such as `torchvision/resnet50`."""

from __future__ import annotations

from typing import Any, Dict, Mapping

from torch import Tensor, nn
from torchvision import models

from ...errors import UserError, did_you_mean, one_line
from .._adapt import user_code_errors
from .own_input import InputSpec

# These have classifiers for training only, which would change what they return. Their weights expect pixels from -1 to
# 1; torchvision converts its usual normalization to that within the model (`transform_input`), which is off here.
INCEPTION = ("googlenet", "inception_v3")
SIZED = "vit_"  # these take images of one size, `image_size`


def check_name(name: str) -> None:
    """Raise a UserError if torchvision has no classification model `name`."""
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no classification model {name!r}{did_you_mean(name, known)}")


def build(name: str, num_classes: int, input_size: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the model with fresh weights, called with `arguments`.

    Raises:
        UserError: torchvision does not accept them.
    """
    check_name(name)
    given: Dict[str, Any] = {"num_classes": num_classes}
    if name in INCEPTION:
        given.update(aux_logits=False, init_weights=True)
    if name.startswith(SIZED):
        given["image_size"] = input_size
    with user_code_errors(
        f"torchvision/{name} refuses its arguments {dict(arguments)}",
        "or see its arguments in torchvision's documentation",
    ):
        return models.get_model(name, weights=None, **{**given, **arguments})


def pretrained(name: str, input_size: int, arguments: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Return torchvision's own weights, downloaded if they are not in torch's hub folder yet.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    weights = _weights(name)
    try:
        state = dict(weights.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # of the network, the disk or the file
        reason = one_line(error)
        raise UserError(
            f"torchvision's weights of {name} cannot be downloaded ({reason}); get {weights.url} and give its path"
        ) from error
    return {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}


def own_input(name: str) -> InputSpec:
    """Return the `InputSpec` of the images that torchvision's weights were trained on.

    Raises:
        UserError: there are no weights.
    """
    transforms = _weights(name).transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if name in INCEPTION:
        mean = std = (0.5, 0.5, 0.5)
    return InputSpec(transforms.crop_size[0], mean, std, transforms.interpolation.value)


def _weights(name: str) -> Any:
    check_name(name)
    choices = list(models.get_model_weights(name))
    if not choices:
        raise UserError(f"torchvision has no weights of {name}; give a file")
    return models.get_model_weights(name).DEFAULT
