"""Models of users: `my_package.models:make_model`, `path/to/file.py:make_model`, objects, and those of plug-ins.

Their `forward` returns `(logits, feats)`, as in MDistiller, or only logits. In the latter case their graph, or hooks,
give the maps and the feature that their classifier consumes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from ...errors import UserError, one_line
from ...paths import portable_path, user_path
from .._adapt import AdaptedModel, evaluation_mode, examine, insert, noise, running_on, user_code_errors
from .._contract import ClassifierModel
from .._outputs import logits_of
from .given_models import PREFIX, given_constructor
from .graphs import NotTraceable
from .hooked import hook_outputs
from .traced import trace_outputs

NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
FILE = re.compile(rf"(?P<place>.+\.py):(?P<attribute>{NAME})")
MODULE = re.compile(rf"(?P<place>{NAME}):(?P<attribute>{NAME})")
USER_FEATURES = ("classifier", "final_map", "feats")  # keys of DISTILLER.STUDENT_FEATURES and TEACHER_FEATURES
REMEDY = "or name another model"

log = logging.getLogger("mdistiller")


def parts_of(name: str) -> Optional[Tuple[str, str, bool]]:
    """Return `(file or module, attribute, whether it is a file)` of such a name; `None` for any other name."""
    for pattern in (FILE, MODULE):
        found = pattern.fullmatch(name)
        if found:
            return found["place"], found["attribute"], pattern is FILE
    return None


def portable_name(name: str) -> str:
    """Return a name with the full path of its file, if it has one; any other name unchanged."""
    parts = parts_of(name)
    return f"{portable_path(parts[0])}:{parts[1]}" if parts is not None and parts[2] else name


def same_model(name: str, other: str) -> bool:
    """Whether two names are equal, except for the folder of a file, which may have moved."""
    parts, others = parts_of(name), parts_of(other)
    if parts is None or others is None or not (parts[2] and others[2]):
        return name == other
    return (Path(parts[0]).name, parts[1]) == (Path(others[0]).name, others[1])


def may_build(name: str, recorded: str) -> bool:
    """Return whether code that the user named may build the model that a checkpoint records.

    Args:
        name: the name that the user gave, such as `path/to/file.py:MyNet`.
        recorded: the name in the checkpoint. If it stands for an object in Python, such as `python:student.MyNet`, any
            class `MyNet` may build it.
    """
    parts, recorded_parts = parts_of(name), parts_of(recorded)
    if parts is not None and recorded_parts is not None and recorded_parts[0] == PREFIX:
        return parts[1] == recorded_parts[1].split(".", 1)[-1]
    return same_model(name, recorded)


def find_constructor(name: str) -> Callable[..., Any]:
    """Import the module or file of a name, and return the constructor that it names.

    Raises:
        UserError: there is no such file, module or attribute, the import fails, or the attribute cannot be called.
    """
    given = given_constructor(name)
    if given is not None:
        return given
    parts = parts_of(name)
    assert parts is not None
    place, attribute, is_file = parts
    with user_code_errors(f"{place} cannot be imported for the model {name}", REMEDY):
        found: Any = _import_file(place) if is_file else _import_module(place, name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = getattr(found, "__name__", "")
            here = [key for key, value in vars(found).items() if getattr(value, "__module__", None) == own]
            defined = ", ".join(key for key in here if callable(vars(found)[key]))
            raise UserError(
                f"{place} has no {attribute!r}, which {name} names; it defines {defined[:200] or 'nothing'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} is a {type(found).__name__}; expected a function or class that returns a model")
    return found


def _import_module(module: str, name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a user's folder does not shadow an installed package
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"the model {name} needs the module {error.name or module}, which cannot be imported here; install it,"
                " start in its folder, or name its file, as in path/to/file.py:make_model"
            ) from None
        raise


def _import_file(place: str) -> Any:
    path = Path(os.path.realpath(user_path(place)))
    if not path.is_file():
        raise UserError(f"no file at {place}; a model of your own is named path/to/file.py:make_model")
    name = f"mdistiller_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # the file may import its neighbors, as a script does
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def build(name: str, num_classes: int, input_size: int, arguments: Mapping[str, Any]) -> Any:
    """Return what the constructor of a name returns for `arguments`, and `num_classes` if it takes that, in float32.

    Raises:
        UserError: the constructor fails, or returns no `nn.Module`.
    """
    constructor = find_constructor(name)
    given: Dict[str, Any] = {"num_classes": num_classes} if _takes_num_classes(constructor) else {}
    given.update(arguments)
    words = ", ".join(f"{key}={value!r}" for key, value in given.items())
    with user_code_errors(f"the constructor of {name} fails with {words or 'no arguments'}", REMEDY):
        model = constructor(**given)
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"the constructor of {name} returns a TorchScript module; expected a torch.nn.Module in Python")
    if not isinstance(model, nn.Module):
        raise UserError(f"the constructor of {name} returns a {type(model).__name__}; expected a torch.nn.Module")
    model = getattr(model, "_orig_mod", model)  # of torch.compile; SOLVER.COMPILE compiles
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} - {torch.float32}
    if kinds:
        log.info(f"note: {name} has weights of {', '.join(sorted(map(str, kinds)))}; they become float32")
        model.float()
    return model


def _takes_num_classes(constructor: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except (TypeError, ValueError):  # written in C
        return True
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


def adapt(
    model: Any, name: str, num_classes: int, input_size: int, features: Optional[Mapping[str, Any]] = None
) -> nn.Module:
    """Add the methods and outputs of `ClassifierModel` to `model` in place, as far as possible, and return it.

    A `ClassifierModel` is returned unchanged. The class of another model is replaced by a subclass of it, as in
    `torch.nn.utils.parametrize`. Layers, weights and their names do not change, nor does the global random state.

    Args:
        model: the model.
        name: its name, given in error messages.
        num_classes: the number of classes, `N`.
        input_size: the side in pixels of the images to run it on.
        features: the names of modules by the keys of `USER_FEATURES`.

    Raises:
        UserError: the model cannot run on these images, returns something other than `OUTPUTS` describes, or returns
            maps of its own although `features` names some.
    """
    if isinstance(model, AdaptedModel):
        return model
    if not isinstance(model, nn.Module):
        raise UserError(f"the constructor of {name} returns a {type(model).__name__}; expected a torch.nn.Module")
    complete = isinstance(model, ClassifierModel)
    if complete or not _returns_logits_alone(model, name, num_classes, input_size):
        if features:
            raise UserError(f"{name} returns its own maps; leave STUDENT_FEATURES or TEACHER_FEATURES out")
        if complete:
            return model
        adapted = insert(model, AdaptedModel, name)
        examine(adapted, num_classes, input_size)
        return adapted
    return _infer_outputs(model, name, num_classes, input_size, features)


def _infer_outputs(
    model: nn.Module, name: str, num_classes: int, input_size: int, features: Optional[Mapping[str, Any]] = None
) -> AdaptedModel:
    """Add the maps and the pooled feature to a model that returns only logits.

    If no classifier is found, the model still returns only logits.

    Raises:
        UserError: the model cannot run on these images, or `features` names a module that does not exist or computes no
            map.
    """
    _check_features(features, name)
    reasons = []
    for find in (trace_outputs, hook_outputs):
        try:
            return find(model, name, num_classes, input_size, features)
        except NotTraceable as error:
            reasons.append(one_line(error))
        except UserError as error:
            if features:
                raise UserError(f"the features of {name}: {error}") from None
            raise
    if features:
        raise UserError(f"the features of {name}: {reasons[-1]}")
    plain = insert(model, AdaptedModel, name, why_incomplete=reasons[-1])
    examine(plain, num_classes, input_size)
    return plain


def _check_features(features: Optional[Mapping[str, Any]], name: str) -> None:
    """Raise a UserError if `features` has other keys, or other values, than names of modules."""
    for key, value in (features or {}).items():
        right = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
        if key not in USER_FEATURES or not (right if key == "feats" else isinstance(value, str)):
            raise UserError(
                f"the features of {name} have {key}: {value!r}; expected {{classifier: NAME, final_map: NAME,"
                " feats: [NAME, ...]} with names of modules, each optional"
            )


def _returns_logits_alone(model: nn.Module, name: str, num_classes: int, input_size: int) -> bool:
    output = run_on_noise(model, name, input_size)
    return isinstance(output, Tensor) and tuple(output.shape) == (2, num_classes)


def run_on_noise(model: nn.Module, name: str, input_size: int) -> Any:
    """Return what a model returns for two images of fixed noise; of an object with `logits`, those."""
    with evaluation_mode(model), torch.random.fork_rng(devices=[]), running_on(name, input_size):
        return logits_of(model(noise(model, input_size)))
