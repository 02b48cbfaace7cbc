"""Models that were given as objects in Python, and so have no name by which another process could build them.

While in use, each has a name such as `python:student.MyNet`, made of a prefix, its role and its class.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Callable, Dict, Iterator, Mapping, Optional

from torch import nn

from ...errors import UserError

PREFIX = "python"  # of their names

_models: ContextVar[Mapping[str, nn.Module]] = ContextVar("given_models")


@contextmanager
def given_models(**models: nn.Module) -> Iterator[Dict[str, str]]:
    """Let models be built by name within a `with` block; yield their names by role.

    What is built is a copy, with the weights of the model at that time. The model itself does not change.

    Args:
        models: the models by role, such as `student`.
    """
    names = {role: f"{PREFIX}:{role}.{type(model).__name__}" for role, model in models.items()}
    token = _models.set({**_models.get({}), **{names[role]: model for role, model in models.items()}})
    try:
        yield names
    finally:
        _models.reset(token)


def given_constructor(name: str) -> Optional[Callable[[], nn.Module]]:
    """Return a function that copies the given model `name`; `None` for a name of another kind.

    Raises:
        UserError: the name is of this kind, and no such model is given now.
    """
    if not name.startswith(f"{PREFIX}:"):
        return None
    model = _models.get({}).get(name)
    if model is None:
        class_name = name.partition(".")[2]
        raise UserError(
            f"the model {name} was given as an object in Python, which cannot be named from elsewhere; give the object"
            f" again (mdistiller.load(path, model=...)), or name its class: -m path/to/file.py:{class_name}"
        )
    given = model
    return lambda: copy.deepcopy(given)
