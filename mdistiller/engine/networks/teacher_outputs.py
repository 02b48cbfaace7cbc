"""The outputs of a teacher's classifier: as many as the data set has classes, in its order.

If the teacher has other classes, only its outputs for the data set's classes are kept; see `teacher_classes`.
"""

from __future__ import annotations

import os
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ...dataset.info import DatasetInfo
from ...errors import UserError, listed
from ..cfg import IMAGENET_CLASSES
from .teacher_classes import KEY, Names, find_rows, read_outputs


def find_outputs(
    info: DatasetInfo, given: str, recorded: Mapping[str, Any], path: str | os.PathLike[str]
) -> Tuple[int, Optional[List[int]]]:
    """Return the number of the teacher's outputs, and those to choose; `None` for all of them, as they are.

    Args:
        info: the description of the data set.
        given: the value of `DISTILLER.TEACHER_CLASSES`.
        recorded: the teacher's checkpoint, if it describes itself; otherwise empty.
        path: the path of the checkpoint, named in error messages.

    Raises:
        UserError: a class of the data set has no output, or more than one.
    """
    if not given and recorded.get("classes", list(info.classes)) == list(info.classes):
        return info.num_classes, None
    outputs: List[Names] = read_outputs(given) if given else [(str(name),) for name in recorded["classes"]]
    rows, missing = find_rows(info, outputs, given or str(path))
    if given and missing:
        raise _lacking(missing, info, given)
    if missing:
        try:
            check_classes(recorded["classes"], info, path)
        except UserError as error:
            raise UserError(f"{error} (it lacks {listed(missing)})") from None
    return len(outputs), None if rows == list(range(len(outputs))) else rows


def check_classes(classes: Any, info: DatasetInfo, path: str | os.PathLike[str]) -> None:
    """Raise a UserError if the classes of a checkpoint are not those of the data set, in the same order."""
    if len(classes) != info.num_classes:
        raise UserError(
            f"checkpoint {path} was trained on {len(classes)} classes, the data set {info.name} has {info.num_classes};"
            " give the data set that it was trained on, or another checkpoint"
        )
    for label, (theirs, ours) in enumerate(zip(classes, info.classes)):
        if theirs != ours:
            raise UserError(
                f"checkpoint {path} knows class {label} as {theirs!r}, in the data set {info.name} it is {ours!r};"
                " give the data set that it was trained on, or another checkpoint"
            )


def _lacking(missing: Sequence[str], info: DatasetInfo, given: str) -> UserError:
    """Return the error that classes are missing in what `DISTILLER.TEACHER_CLASSES` names."""
    return UserError(
        f"{KEY} {given} lacks {len(missing)} of the {info.num_classes} classes of the data set {info.name}:"
        f" {listed(missing)}; name the outputs as the classes, or give a teacher that knows them"
    )


def check_num_outputs(
    teacher: nn.Module, classifier: Optional[str], state: Mapping[str, Any], source: str, info: DatasetInfo, given: str
) -> None:
    """Raise a UserError if weights have a classifier with another number of outputs than the teacher.

    Args:
        teacher: the teacher, built with as many outputs as names are known, or as the data set has classes.
        classifier: the name of its classifier; `None` if it has none.
        state: the weights to load; their keys may have a prefix.
        source: the origin of the weights, given in error messages.
        info: the description of the data set.
        given: the value of `DISTILLER.TEACHER_CLASSES`.
    """
    if classifier is None:
        return
    key, linear = f"{classifier}.weight", teacher.get_submodule(classifier)
    assert isinstance(linear, nn.Linear)
    found = [value for name, value in state.items() if f".{name}".endswith(f".{key}") and isinstance(value, Tensor)]
    if len(found) != 1 or found[0].dim() != 2 or len(found[0]) == linear.out_features:
        return
    outputs = f"the teacher's classifier {classifier} in {source} has {len(found[0])} outputs"
    if given:
        raise UserError(f"{outputs}, {KEY} {given} names {linear.out_features}; give the names of all, in their order")
    raise UserError(
        f"{outputs}, the data set {info.name} has {info.num_classes} classes; name its outputs with {KEY} (a text file,"
        f" or {IMAGENET_CLASSES}), or give a teacher of these classes"
    )


def keep_outputs(teacher: Any, rows: Sequence[int]) -> None:
    """Keep only some rows of the teacher's classifier, in place, in the order of `rows`.

    Raises:
        UserError: the teacher has no ordinary `nn.Linear` as its classifier.
    """
    try:
        classifier = teacher.get_classifier()
    except UserError as error:
        raise UserError(f"the outputs of the teacher cannot be chosen: {error}") from None
    if not {name for name, _ in classifier.named_parameters()} <= {"weight", "bias"}:
        raise UserError(
            "the outputs of the teacher cannot be chosen: its classifier is parametrized (weight norm, for example);"
            " give it a plain nn.Linear"
        )
    for name, parameter in list(classifier.named_parameters()):
        chosen = parameter.detach()[torch.tensor(rows, device=parameter.device)]
        setattr(classifier, name, nn.Parameter(chosen, parameter.requires_grad))
    classifier.out_features = len(rows)
