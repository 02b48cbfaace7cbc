"""The weights that torchvision releases: their paths, and their download."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TypeVar

import torch
from torch import hub, nn
from torchvision.models import get_weight

from ...errors import UserError, one_line
from .._weights import load_weights

# the teachers of the published tables; torchvision's later "V2" weights are stronger models of the same architecture
RELEASES = {
    name: f"{name}_Weights.IMAGENET1K_V1" for name in ("ResNet18", "ResNet34", "ResNet50", "ResNet101")
}  # fmt: skip
TIMEOUT = 30  # seconds to wait for the server

Model = TypeVar("Model", bound=nn.Module)


def released_file(name: str) -> Path:
    """Return the path of torchvision's weights of `name` in torch's hub folder; download them if they are missing.

    Raises:
        UserError: no weights are released for `name`, or they cannot be downloaded.
    """
    if name not in RELEASES:
        raise UserError(
            f"no ImageNet weights of {name} are released; train it (DISTILLER.STUDENT {name}), or give a file"
            " (DISTILLER.TEACHER_WEIGHTS, -c)"
        )
    url = get_weight(RELEASES[name]).url
    file = Path(hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if file.is_file():
        return file
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[1])
    except Exception as error:
        reason = one_line(error)
        raise UserError(
            f"torchvision's weights of {name} are not at {file} and could not be downloaded ({reason});"
            f" get {url} and put it there, or give a file (DISTILLER.TEACHER_WEIGHTS, -c)"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return file


def with_released_weights(model: Model, name: str) -> Model:
    """Load torchvision's weights of `name` into `model`, and return it.

    Raises:
        UserError: no weights are released for `name`, they cannot be downloaded, or they do not fit (they have 1000
            classes).
    """
    file = released_file(name)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, torch.load may raise any type
        raise UserError(f"{file} is damaged ({type(error).__name__}); remove it, and it is downloaded again") from error
    load_weights(model, state, str(file))
    return model
