"""The checkpoint of a deployed student: it describes itself, so that it can be rebuilt without the teacher.

It is a dictionary of tensors and plain values: `format`, `version`, `model` (the bare student's state_dict), `head`
(`kind`, `options`, `state`; `None` without one), `arch`, `dataset`, `classes`, `input_size`, `mean`, `std`, `epoch`,
`accuracy` (percent, by name), `config`. A model of a library or of the user's own also has `arguments` (of its
constructor) and `features` (names of modules, if they were given).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ...dataset.info import DatasetInfo
from ...dataset.options import SIZE
from ...distillers import DeployedStudent, head_dict
from ...errors import UserError, one_line
from ...models import build_model, check_model, library_of
from ...models.adapters.given_models import given_constructor
from ...paths import find_file
from ...registry import UnknownName
from .foreign_weights import load_checkpoint

FORMAT = "mdistiller.student"
VERSION = 1
STUDENT_FILES = ("student_best.pth", "student_latest.pth")  # of a run folder


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the file of a student: `path`, or the best student in the run folder `path`.

    Raises:
        UserError: there is neither.
    """
    found = find_file(path)
    if not found.is_dir():
        return found
    for name in STUDENT_FILES:
        if (found / name).is_file():
            return found / name
    raise UserError(
        f"the folder {found} holds no student ({' or '.join(STUDENT_FILES)}); give the folder of a finished run, or"
        " a checkpoint file"
    )


def describe_student(
    student: DeployedStudent,
    arch: str,
    info: DatasetInfo,
    accuracy: Dict[str, float],
    epoch: int,
    config: Dict[str, Any],
) -> Dict[str, Any]:
    """Return the dictionary described in the docstring of this module."""
    head = student.head
    distiller = config.get("DISTILLER", {})
    given = {"arguments": distiller.get("STUDENT_ARGS") or {}, "features": distiller.get("STUDENT_FEATURES") or {}}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": student.backbone.state_dict(),
        "head": None if head is None else {"kind": head.kind, "options": head.options, "state": head.state_dict()},
        "arch": arch,
        "dataset": info.name,
        "classes": list(info.classes),
        "input_size": info.input_size,
        "mean": list(info.mean),
        "std": list(info.std),
        "epoch": epoch,
        "accuracy": accuracy,
        "config": config,
        **(given if library_of(arch) or any(given.values()) else {}),
    }


DESCRIPTION = {
    "version": int,
    "model": dict,
    "arch": str,
    "dataset": str,
    "classes": list,
    "input_size": int,
    "mean": list,
    "std": list,
    "epoch": int,
    "accuracy": dict,
    "config": dict,
}


def is_described(checkpoint: Dict[str, Any]) -> bool:
    """Return whether a checkpoint describes itself, as those of `describe_student` do.

    Raises:
        UserError: the description is incomplete, or of a later version.
    """
    if checkpoint.get("format") != FORMAT:
        return False
    version = checkpoint.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"the checkpoint has format version {version}; this mdistiller reads up to {VERSION}, upgrade it"
        )
    lacking = [key for key, kind in DESCRIPTION.items() if not isinstance(checkpoint.get(key), kind)]
    if "input_size" not in lacking and checkpoint["input_size"] not in SIZE:
        lacking.append("input_size")
    if "mean" not in lacking and not _are_channels(checkpoint["mean"]):
        lacking.append("mean")
    if "std" not in lacking and not (_are_channels(checkpoint["std"]) and min(checkpoint["std"]) > 0):
        lacking.append("std")
    if "classes" not in lacking and len(set(map(str, checkpoint["classes"]))) != len(checkpoint["classes"]):
        lacking.append("classes")
    head = checkpoint.get("head")
    whole = not lacking and (
        isinstance(checkpoint["config"].get("DATASET"), dict)
        and isinstance(checkpoint["config"].get("DISTILLER", {}), dict)
        and all(isinstance(name, str) for name in plugins_of(checkpoint))
        and "deployed_top1" in checkpoint["accuracy"]
        and all(isinstance(value, (int, float)) for value in checkpoint["accuracy"].values())
        and (head is None or (isinstance(head, dict) and {"kind", "options", "state"} <= set(head)))
        and (head is None or isinstance(head["kind"], str))
        and all(isinstance(checkpoint.get(key, {}), dict) for key in ("arguments", "features"))
    )
    if not whole:
        parts = ", ".join(lacking or ["config, accuracy or head"])
        raise UserError(f"the checkpoint's description is damaged ({parts}); get the file again")
    return True


def _are_channels(values: List[Any]) -> bool:
    """Whether there is a finite number for each of the three channels."""
    return len(values) == 3 and all(type(value) in (int, float) and math.isfinite(value) for value in values)


def plugins_of(checkpoint: Dict[str, Any]) -> List[Any]:
    """Return the PLUGINS in the configuration of a described checkpoint; `[None]` if they are not a list."""
    given = checkpoint["config"].get("PLUGINS", [])
    return given if isinstance(given, list) else [None]


def check_known(checkpoint: Dict[str, Any], arch: str, dataset: str, input_size: Optional[int]) -> None:
    """Check that there is a model `arch` for a data set; see `check_model`.

    Raises:
        UserError: there is none. The message names the plug-ins that the checkpoint was trained with.
    """
    try:
        check_model(arch, dataset, input_size)
    except UnknownName as error:
        remedy = _plugins_to_load(checkpoint) if is_described(checkpoint) and checkpoint["arch"] == arch else ""
        if not remedy:
            raise
        raise UserError(f"the checkpoint's model {arch!r} is not known here; {remedy}") from error


def _plugins_to_load(checkpoint: Dict[str, Any]) -> str:
    """Return how to load the plug-ins of a checkpoint; they are never loaded automatically."""
    plugins = ", ".join(plugins_of(checkpoint))
    options = f'PLUGINS "[{plugins}]" (predict.py: --plugin FILE; report.py: --set PLUGINS "[FILE]")'
    return f"if you trust it, load what it was trained with: {options}" if plugins else ""


def check_arch(checkpoint: Dict[str, Any], arch: str, path: str | os.PathLike[str]) -> None:
    """Check that the model `arch` is the one that a described checkpoint holds.

    Two names of the user's own code may be names of one model, because files move. The user vouches for it.

    Raises:
        UserError: it is another model. Code of the user's own is only run if the user names it.
    """
    held = checkpoint["arch"]
    if held == arch or library_of(held) == library_of(arch) == "user":
        return
    code = "" if library_of(held) != "user" else f", or the name under which {held} can be imported here"
    raise UserError(f"checkpoint {path} holds a {held}, not a {arch}; give -m {held}{code}")


def choose_arch(checkpoint: Dict[str, Any], model: str, path: str | os.PathLike[str]) -> str:
    """Return the name of the model to build for a checkpoint: `model`, or if that is empty, the recorded name.

    Code of the user's own must be named by the user, because a checkpoint must not decide which code runs.

    Raises:
        UserError: the checkpoint holds another model, records none, or records one that must be named.
    """
    if not is_described(checkpoint):
        if model:
            return model
        raise UserError(
            f"checkpoint {path} holds weights alone and names no model; give its name, such as -m resnet8x4"
        )
    arch = model or checkpoint["arch"]
    check_arch(checkpoint, arch, path)
    if not model and library_of(arch) == "user":
        given_constructor(arch)  # has its own message
        raise UserError(
            f"checkpoint {path} holds {arch}, a model defined in custom code; if you trust that code, name it: -m NAME"
            " on the command line, model=... in Python"
        )
    return arch


def constructor_of(
    checkpoint: Dict[str, Any], arguments: Optional[Mapping[str, Any]], features: Optional[Mapping[str, Any]]
) -> Tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the arguments and features that a model is built with: those given, or those that a checkpoint records."""
    recorded = checkpoint if is_described(checkpoint) else {}
    return arguments or recorded.get("arguments", {}), features or recorded.get("features", {})


def load_student(
    checkpoint: Dict[str, Any],
    arch: str,
    num_classes: int,
    path: str | os.PathLike[str],
    dataset: str = "cifar100",
    input_size: Optional[int] = None,
    arguments: Optional[Mapping[str, Any]] = None,
    features: Optional[Mapping[str, Any]] = None,
) -> DeployedStudent:
    """Build the deployed student of a checkpoint, or the bare model `arch` if the checkpoint does not describe itself.

    Args:
        checkpoint: the checkpoint, as `read_checkpoint` returns it.
        arch: the name of the model.
        num_classes: the number of outputs of the classifier.
        path: the checkpoint's path, named in error messages.
        dataset, input_size: the name of the data set and the side of its images in pixels, which select among models of
            the same name if the checkpoint does not describe itself.
        arguments, features: see `build_model`; by default those that the checkpoint records.

    Raises:
        UserError: the checkpoint holds another model or a damaged head, or needs a plug-in.
    """
    described = is_described(checkpoint)
    if described:
        check_arch(checkpoint, arch, path)
        dataset, input_size = checkpoint["dataset"], checkpoint["input_size"]
    check_known(checkpoint, arch, dataset, input_size)
    constructor = constructor_of(checkpoint, arguments, features)
    backbone = build_model(arch, num_classes, dataset, input_size, *constructor, new_head=True)
    load_checkpoint(backbone, checkpoint, path)
    saved = checkpoint.get("head") if described else None
    if saved is None:
        return DeployedStudent(backbone)
    if saved["kind"] not in head_dict:
        remedy = _plugins_to_load(checkpoint) or "install it"
        raise UserError(f"checkpoint {path} needs the head {saved['kind']!r}, which no distiller here has; {remedy}")
    try:
        head = head_dict[saved["kind"]](**saved["options"])
        head.load_state_dict(saved["state"])
    except Exception as error:  # damaged options can make the constructor raise any type
        reason = one_line(error)
        raise UserError(f"the head in checkpoint {path} is damaged ({reason}); get the file again") from None
    return DeployedStudent(backbone, head)
