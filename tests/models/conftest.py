"""Models whose BatchNorms are not at their trivial initial values."""

from __future__ import annotations

from typing import Callable, TypeVar

import pytest
import torch
from torch import nn

from mdistiller.models import ClassifierModel, cifar_model_dict, tiny_imagenet_model_dict

_Model = TypeVar("_Model", bound=nn.Module)

# every model for small images by its constructor's name
SMALL_MODELS = {
    constructor.__name__: constructor
    for dictionary in (cifar_model_dict, tiny_imagenet_model_dict)
    for constructor, _ in dictionary.values()
}


def make_vivid(model: _Model) -> _Model:
    """Give `model` random BatchNorm parameters and statistics, and return it."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model


def _vivid_model(name: str, num_classes: int = 7) -> ClassifierModel:
    torch.manual_seed(0)
    return make_vivid(SMALL_MODELS[name](num_classes=num_classes))


@pytest.fixture(scope="session")
def vivid_model() -> Callable[..., ClassifierModel]:
    """`vivid_model(name, num_classes=7)`: a model from seed 0, with random BatchNorm parameters and statistics."""
    return _vivid_model
