"""Distillation from Python: modules and data sets, with the engine of the command line."""

from __future__ import annotations

import copy
import os
from contextlib import ExitStack
from typing import Any, Dict, Mapping, Optional, Sequence, Union

from torch import nn

from .. import distributed
from ..dataset.given import given_data
from ..distillers import distiller_dict
from ..engine.build import build_trainer
from ..engine.cfg import cfg_from, experiment_name
from ..engine.checkpoint import find_checkpoint, is_described, read_checkpoint
from ..engine.networks.teacher_outputs import check_classes
from ..engine.run.folder import RunFolder
from ..engine.run.signals import RunStopped
from ..engine.validate import validated
from ..errors import UserError
from ..export.opening import CHECKPOINTS
from ..models import library_of
from ..models.adapters.given_models import given_models
from .data import Data, read_data
from .options import DEFAULTS, SOURCE, as_words, given_keys, nested, output_keys
from .result import Result
from .student import Student

Model = Union[nn.Module, str, "os.PathLike[str]", None]


def distill(
    student: Union[nn.Module, str],
    teacher: Model,
    train_data: Data,
    val_data: Optional[Data] = None,
    method: str = "SFAKD",
    *,
    output: Union[str, os.PathLike[str]] = "output/distill",
    resume: bool = False,
    overwrite: bool = False,
    classes: Optional[Sequence[str]] = None,
    settings: Optional[Mapping[str, Any]] = None,
    **options: Any,
) -> Result:
    """Train a student with a teacher, as `tools/train.py` does: the same loop, checkpoints, logs and resume.

    Objects that are given are not changed: copies of them are trained.

    Args:
        student: a module; a name as for `DISTILLER.STUDENT` (`resnet8`, `timm/resnet18`, `my_file.py:make`); or the
            path of a checkpoint or of the folder of a run. A module takes images float32 `[B, 3, S, S]`, normalized,
            and returns logits `[B, K]`, or `(logits, feats)` as MDistiller's models do. Training starts from its
            weights.
        teacher: a module or a name, as for `student`; or the path of a checkpoint or of the folder of a run; or what
            `load` returned. `None` for methods without a teacher, such as `NONE`, which trains the student alone.
        train_data: a folder with `<class>/<image>`, or with `train/` and `val/` of this layout; the name of a data set
            (`cifar100`, `fashion_demo`); or a PyTorch `Dataset` of (image, label). Its images are PIL images, arrays
            `[H, W, 3]` or tensors `[3, H, W]`, uint8 or in [0, 1], without normalization and random transforms, which
            are the engine's task.
        val_data: a folder or a `Dataset`; `None` if `train_data` names both parts, or has `train/` alone and
            `val_fraction` is given.
        method: the name of a distiller.
        output: the folder of the run.
        resume: whether to continue the run in `output`.
        overwrite: whether to replace the run in `output`.
        classes: the class names in label order; by default those of the folders or of `train_data.classes`, otherwise
            those of a teacher that `load` returned, otherwise the numbers.
        settings: further values by configuration key, such as `{"SFAKD.SIGMA": 0.2}`; see docs/configuration.md.
        options: further options, such as `epochs`, `batch_size`, `lr`, `seed`, `amp` and `input_size`; see
            docs/python.md. Defaults are those of the configuration, except that the schedule is `cosine` and Weights &
            Biases is off.

    Returns:
        The finished run.

    Raises:
        UserError: the arguments are invalid (one line for each error), or the folder holds another run. Nothing is
            written in these cases. Or: a loss became NaN or infinite; the state is written to nonfinite.pth.
        KeyboardInterrupt: Ctrl-C; the state is saved, continue with `resume=True`.
        SystemExit: SIGTERM; the state is saved, continue with `resume=True`.
    """
    if not isinstance(method, str):
        raise UserError(f"method is {method!r:.100}; expected the name of a distiller, such as 'SFAKD'")
    keys = {**given_keys(options, settings or {}), **output_keys(output), "DISTILLER.TYPE": method}
    known = teacher.classes if isinstance(teacher, Student) else ()
    data = read_data(train_data, val_data, classes, known)
    _merge(keys, data.keys)
    with ExitStack() as stack:
        modules = {}
        for role, model in (("student", student), ("teacher", teacher)):
            if isinstance(model, nn.Module):
                modules[role] = _bare_model(model, role, keys)
            else:
                _merge(keys, _named_model(model, role))
        for role, name in stack.enter_context(given_models(**modules)).items():
            keys[f"DISTILLER.{role.upper()}"] = name
        if data.make is not None:
            stack.enter_context(given_data(data.make))
        stack.enter_context(distributed.process_group())
        cfg = cfg_from(nested({**DEFAULTS, **keys}), SOURCE)
        if teacher is None and method in distiller_dict and distiller_dict[method].needs_teacher:
            raise UserError(f"the method {method} needs a teacher; give one, or train the student alone: method='NONE'")
        if teacher is not None and method in distiller_dict and not distiller_dict[method].needs_teacher:
            raise UserError(f"the method {method} uses no teacher; give teacher=None, or another method")
        cfg = validated(cfg, as_words(keys), resume, overwrite)
        folder = RunFolder(cfg.LOG.PREFIX, experiment_name(cfg))
        distributed.run_on_main(lambda: folder.check(resume, overwrite))  # before anything is built
        trainer = build_trainer(cfg, validate=False)
        if isinstance(teacher, Student):
            check_classes(teacher.classes, trainer.train_loader.info, teacher.source.path)
        try:
            summary = trainer.train(resume, overwrite)
        except RunStopped as stopped:
            if stopped.name != "SIGINT":
                raise
            raise KeyboardInterrupt(f"{stopped}; saved in {folder.path}, continue with resume=True") from None
    own_code = cfg.DISTILLER.STUDENT if library_of(cfg.DISTILLER.STUDENT) == "user" else None
    return Result(summary, folder.path, modules.get("student", own_code))


def _merge(keys: Dict[str, Any], own: Mapping[str, Any]) -> None:
    """Add keys that an argument gives; keys of the options and settings stay, except those that contradict it."""
    for key, value in own.items():
        if keys.setdefault(key, value) != value:
            raise UserError(
                f"{key} is {keys[key]!r} in options or settings, but the given data or model sets it to {value!r};"
                " leave it out"
            )


def _bare_model(model: nn.Module, role: str, keys: Dict[str, Any]) -> nn.Module:
    """Return a model, or the backbone of a `Student`, which then sees images as in its training."""
    if not isinstance(model, Student):
        return model
    head = model.network.head
    if head is not None:
        raise UserError(f"the {role} is a student that needs its {head.kind} head; give a bare model")
    info = model.source.info
    if role == "teacher":
        own = {"size": info.input_size, "mean": list(info.mean), "std": list(info.std), "interpolation": "bilinear"}
        keys.setdefault("DISTILLER.TEACHER_INPUT", own)  # the loaders resize bilinearly
        return model.network.backbone
    for key, value in (("INPUT_SIZE", info.input_size), ("MEAN", list(info.mean)), ("STD", list(info.std))):
        keys.setdefault(f"DATASET.{key}", value)
    return copy.deepcopy(model.network.backbone).requires_grad_(True)


def _named_model(model: Any, role: str) -> Dict[str, Any]:
    """Return the keys of a model that is given by name, or by the path of a checkpoint that describes it."""
    key = f"DISTILLER.{role.upper()}"
    if model is None and role == "teacher":
        return {}
    if not isinstance(model, (str, os.PathLike)) or not os.fspath(model):
        raise UserError(f"the {role} is {model!r:.100}; expected a torch.nn.Module or a name")
    text = os.fspath(model)
    # "resnet8" is a model, also where a folder has that name; "./resnet8" and "output/run" are folders
    folder = os.path.isdir(text) and os.sep in text and not library_of(text)
    if not (isinstance(model, os.PathLike) or text.lower().endswith(CHECKPOINTS) or folder):
        return {key: text}
    path = find_checkpoint(model)
    checkpoint = read_checkpoint(path)
    if not is_described(checkpoint):
        raise UserError(f"{path} holds weights alone; give {role}='NAME' and {role}_weights={str(path)!r}")
    if library_of(checkpoint["arch"]) == "user":
        raise UserError(
            f"{path} holds {checkpoint['arch']}, a model defined in custom code; if you trust it, give the {role} by"
            f" that name, or as an object, and {role}_weights={str(path)!r}"
        )
    return {key: checkpoint["arch"], f"{key}_WEIGHTS": str(path)}
