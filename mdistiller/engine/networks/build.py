"""Teacher and student of a run: built by name, with their weights, and the images that the teacher sees."""

from __future__ import annotations

import logging
import math
import os
from typing import Any, Dict, Mapping, Optional, Tuple

from torch import nn
from yacs.config import CfgNode

from ...dataset import cifar100, imagenet
from ...dataset.given import has_own_size
from ...dataset.info import DatasetInfo
from ...errors import UserError
from ...models import (
    InputSpec,
    build_model,
    give_own_input,
    library_input,
    library_of,
    library_weights,
    load_weights,
    released_teacher,
)
from ...models.adapters.own_input import INTERPOLATIONS
from ..cfg import PRETRAINED
from ..checkpoint import constructor_of, is_described, load_checkpoint, read_checkpoint, weights_of
from .teacher_outputs import check_num_outputs, find_outputs, keep_outputs

RELEASED_INPUT = {  # what released teachers of the zoo were trained on, by data set
    "cifar100": InputSpec(32, cifar100.MEAN, cifar100.STD),
    "imagenet": InputSpec(224, imagenet.MEAN, imagenet.STD, "bilinear"),
}
SAME = "same"  # value of TEACHER_INPUT: as the student
INPUT_EXAMPLE = "{size: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], interpolation: bicubic}"

log = logging.getLogger("mdistiller")


def released_weights(arch: str, dataset: str, input_size: Optional[int]) -> str | os.PathLike[str]:
    """Return the path of the released checkpoint of `arch` for a data set.

    Raises:
        UserError: none is released, or it has not been downloaded.
    """
    if library_of(arch):
        raise UserError(
            f"no weights are given for {arch}; give a checkpoint file, or for a teacher set DISTILLER.TEACHER_WEIGHTS"
            " to pretrained"
        )
    path = released_teacher(arch, dataset, input_size)
    if path is None:
        raise UserError(f"no checkpoint of {arch} is released for {dataset}; train one, and give its file")
    if not os.path.isfile(path):
        raise UserError(
            f"no checkpoint at {path}; get cifar_teachers.tar with mdistiller-fetch-ckpts"
            " (in a clone: tools/fetch_ckpts.py), or give a file of your own"
        )
    return path


def input_errors(given: Any) -> str:
    """Return an error message for a value of `DISTILLER.TEACHER_INPUT`, or an empty string if it is valid."""
    if given in (None, SAME, PRETRAINED):
        return ""
    expected = f"DISTILLER.TEACHER_INPUT is {given!r}; expected None, same, pretrained, or entries of {INPUT_EXAMPLE}"
    if not isinstance(given, dict) or not set(given) <= set(InputSpec._fields):
        return expected
    size, interpolation = given.get("size", 1), given.get("interpolation", INTERPOLATIONS[0])
    valid = type(size) is int and 1 <= size <= 4096 and interpolation in INTERPOLATIONS
    for key in ("mean", "std"):
        values = given.get(key, [1.0, 1.0, 1.0])
        numbers = isinstance(values, list) and all(
            type(value) in (int, float) and math.isfinite(value) for value in values
        )
        valid = valid and numbers and len(values) == 3 and (key == "mean" or min(values) > 0)
    return "" if valid else expected


def teacher_input(
    section: Mapping[str, Any], dataset: str, student: InputSpec, checkpoint: Mapping[str, Any]
) -> InputSpec:
    """Return the images that the teacher sees; see `DISTILLER.TEACHER_INPUT`.

    Args:
        section: the section `DISTILLER` of the configuration.
        dataset: the name of the data set.
        student: the images that the student sees.
        checkpoint: the teacher's checkpoint, if it describes itself; otherwise empty.

    Raises:
        UserError: the input of pretrained weights is asked for, and there are none.
    """
    arch, given, weights = section["TEACHER"], section.get("TEACHER_INPUT"), section.get("TEACHER_WEIGHTS", "")
    if given == SAME:
        return student
    if isinstance(given, dict):
        entries: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return student._replace(**entries)
    own = library_input(arch) if PRETRAINED in (given, weights) else None
    if not library_of(arch) and weights in ("", PRETRAINED):
        own = RELEASED_INPUT.get(dataset)
    if own is not None:
        return own
    if given == PRETRAINED:
        raise UserError(
            f"DISTILLER.TEACHER_INPUT pretrained needs a model of a library or released weights, given {arch}; give a"
            " mapping"
        )
    return _recorded_input(checkpoint) if checkpoint else student


def _recorded_input(checkpoint: Mapping[str, Any]) -> InputSpec:
    """Return the images that a checkpoint of ours was trained with; the loaders resize images bilinearly."""
    return InputSpec(checkpoint["input_size"], tuple(checkpoint["mean"]), tuple(checkpoint["std"]), "bilinear")


def with_student_input(cfg: CfgNode) -> CfgNode:
    """Return the configuration with the input that the student's weights were trained with, where it gives no other.

    This applies to the weights that a library releases, and to checkpoints that describe themselves. Mean and standard
    deviation are set if `DATASET.MEAN` is `None`, and the size of own images if `DATASET.INPUT_SIZE` is `None`.
    """
    own = _student_input(cfg)
    data = cfg.DATASET
    values: Dict[str, Any] = {}
    if own is not None and data.MEAN is None and data.STD is None:
        values.update(MEAN=list(own.mean), STD=list(own.std))
    if own is not None and data.INPUT_SIZE is None and not has_own_size(cfg):
        values["INPUT_SIZE"] = own.size
    if not values:
        return cfg
    words = " ".join(f"DATASET.{key} {value}" for key, value in values.items())
    log.info(f"note: the student sees images as its weights were trained on: {words}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.update(values)
    cfg.freeze()
    return cfg


def _student_input(cfg: CfgNode) -> Optional[InputSpec]:
    arch, weights = cfg.DISTILLER.STUDENT, cfg.DISTILLER.STUDENT_WEIGHTS
    if weights == PRETRAINED:
        return library_input(arch)
    if not weights:
        return None
    checkpoint = read_checkpoint(weights)
    if not is_described(checkpoint):
        return None
    return _recorded_input(checkpoint)


def build_teacher(cfg: CfgNode, info: DatasetInfo) -> nn.Module:
    """Build the teacher, load its weights, and let it see the images that it was trained on.

    If the names of its outputs are known, from `DISTILLER.TEACHER_CLASSES` or a checkpoint that describes itself, those
    of the data set's classes are chosen.

    Raises:
        UserError: the weights do not fit the model or the data set.
    """
    options, arch = cfg.DISTILLER, cfg.DISTILLER.TEACHER
    path, checkpoint = _teacher_checkpoint(cfg, info)
    described = checkpoint is not None and is_described(checkpoint)
    recorded: Dict[str, Any] = checkpoint if described and checkpoint else {}
    if recorded:
        _check_described_teacher(cfg, info, recorded, path)
    num_outputs, rows = find_outputs(info, options.TEACHER_CLASSES, recorded, path)
    given = InputSpec(info.input_size, tuple(info.mean), tuple(info.std))
    own = teacher_input(options, info.name, given, recorded)
    arguments, features = constructor_of(recorded, options.TEACHER_ARGS, options.TEACHER_FEATURES)
    dataset, size = (recorded["dataset"], recorded["input_size"]) if recorded else (info.name, info.input_size)
    if library_of(arch):
        size = own.size
    # a student of ours may have got a new classifier, which its file has
    teacher = build_model(arch, num_outputs, dataset, size, arguments, features, new_head=bool(recorded))
    given_outputs = info, options.TEACHER_CLASSES
    if checkpoint is not None:
        state = weights_of(checkpoint, path)
        check_num_outputs(teacher, _classifier_name(teacher), state, str(path), *given_outputs)
        load_checkpoint(teacher, checkpoint, path)
    elif options.TEACHER_WEIGHTS == PRETRAINED:
        state, source = library_weights(arch, own.size, arguments), f"the pretrained {arch}"
        check_num_outputs(teacher, _classifier_name(teacher), state, source, *given_outputs)
        load_weights(teacher, state, source)
    if rows is not None:
        keep_outputs(teacher, rows)
        log.info(f"note: of the teacher's {num_outputs} outputs, the {len(rows)} of the data set's classes are used")
    return give_own_input(teacher, own, given)


def _teacher_checkpoint(cfg: CfgNode, info: DatasetInfo) -> Tuple[str | os.PathLike[str], Optional[Dict[str, Any]]]:
    """Return the path and content of the teacher's checkpoint; `None` as content if its weights come from elsewhere."""
    arch, path = cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_WEIGHTS
    kind = library_of(arch)
    if (path == PRETRAINED and kind) or (not path and kind == "user"):
        return path, None
    if path in ("", PRETRAINED):
        path = released_weights(arch, info.name, info.input_size)
    return path, read_checkpoint(path)


def _check_described_teacher(
    cfg: CfgNode, info: DatasetInfo, checkpoint: Dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Raise a UserError if a described checkpoint cannot be the teacher; note what differs in its training."""
    arch, held = cfg.DISTILLER.TEACHER, checkpoint["arch"]
    if held != arch and not library_of(held) == library_of(arch) == "user":
        raise UserError(f"DISTILLER.TEACHER is {arch}, but {path} holds a {held}; set it to {held}")
    if checkpoint["head"] is not None:
        raise UserError(
            f"{path} is a student that needs its {checkpoint['head']['kind']} head; a teacher must be a bare model"
        )
    fraction = checkpoint["config"]["DATASET"].get("VAL_FRACTION", 0.0)
    # a smaller fraction is part of a larger one
    if checkpoint["dataset"] == info.name and fraction < cfg.DATASET.VAL_FRACTION:
        log.info(
            f"note: the teacher was trained with DATASET.VAL_FRACTION {fraction}, this run has"
            f" {cfg.DATASET.VAL_FRACTION}: some images to validate on may be ones that the teacher was trained on"
        )


def build_student(cfg: CfgNode, info: DatasetInfo) -> nn.Module:
    """Build the student with fresh weights, or with those of `DISTILLER.STUDENT_WEIGHTS`.

    A classifier for another number of classes is replaced or not loaded; a note says so.

    Raises:
        UserError: the weights do not fit the model.
    """
    options, arch = cfg.DISTILLER, cfg.DISTILLER.STUDENT
    path: Any = options.STUDENT_WEIGHTS
    arguments, features = options.STUDENT_ARGS or {}, options.STUDENT_FEATURES or {}
    student = build_model(arch, info.num_classes, info.name, info.input_size, arguments, features, new_head=True)
    if not path:
        return student
    classifier = _classifier_name(student)
    if path == PRETRAINED and library_of(arch):
        state = library_weights(arch, info.input_size, arguments)
        load_weights(student, state, f"the pretrained {arch}", classifier)
        return student
    if path == PRETRAINED:
        path = released_weights(arch, info.name, info.input_size)
    checkpoint = read_checkpoint(path)
    if is_described(checkpoint):
        held = checkpoint["arch"]
        if held != arch and not library_of(held) == library_of(arch) == "user":
            raise UserError(f"DISTILLER.STUDENT is {arch}, but {path} holds a {held}; set it to {held}")
        if checkpoint["head"] is not None:
            log.info(f"note: of {path}, the student starts from the bare model, without its head")
    load_checkpoint(student, checkpoint, path, classifier)
    return student


def _classifier_name(model: Any) -> Optional[str]:
    try:
        classifier = model.get_classifier()
    except UserError:  # a model that gives logits alone
        return None
    return next(name for name, module in model.named_modules() if module is classifier)
