"""A new classifier for a user's own model that has another number of classes than the data set.

Shapes: `N` classes.
"""

from __future__ import annotations

import logging
from typing import Any, Mapping, Optional

from torch import Tensor, nn

from ...errors import UserError
from .._contract import ClassifierModel
from .user_models import adapt, run_on_noise

log = logging.getLogger("mdistiller")


def replace_classifier(
    model: Any, name: str, num_classes: int, input_size: int, features: Optional[Mapping[str, Any]] = None
) -> None:
    """Give a model that has another number of classes a new classifier, in place, and say so in a note.

    Args:
        model, name, num_classes, input_size, features: see `adapt`.

    Raises:
        UserError: the model has no classifier that could be replaced.
    """
    if not isinstance(model, nn.Module) or isinstance(model, ClassifierModel):
        return
    logits = _logits(model, name, input_size)
    if logits is None or logits.dim() != 2 or logits.shape[1] == num_classes:
        return
    kind = type(model)
    adapted: Any = adapt(model, name, logits.shape[1], input_size, features)
    try:
        old = adapted.get_classifier()
    except UserError as error:
        raise UserError(
            f"{name} has {logits.shape[1]} classes, the data set has {num_classes}, and its classifier cannot be"
            f" replaced: {error}"
        ) from None
    path = next(path for path, module in adapted.named_modules() if module is old)
    model.__class__ = kind
    place, _, attribute = path.rpartition(".")
    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    setattr(model.get_submodule(place), attribute, new.to(old.weight.device, old.weight.dtype))
    log.info(
        f"note: the classifier {path} of {name} has {old.out_features} outputs; a new one of {num_classes} replaces it"
    )


def _logits(model: nn.Module, name: str, input_size: int) -> Optional[Tensor]:
    output = run_on_noise(model, name, input_size)
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) else None
