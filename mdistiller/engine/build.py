"""The only place where the names in a configuration become objects."""

from __future__ import annotations

import logging
import os
import random
import re
from typing import Any, Callable, Iterator, List, Optional, Sequence

import numpy as np
import torch
from torch import nn

from .. import distributed
from ..dataset import Loader, dataset_dict, get_dataset
from ..dataset.info import DatasetInfo
from ..distillers import distiller_dict
from ..distillers._base import knows
from ..distillers._common import probe
from ..distillers._plugins import build_distiller
from ..errors import UserError, memory_shortage, refuse
from ..models import build_model, find_model, released_teacher
from ..paths import find_file
from .cfg import experiment_name, read_cfg, resolved
from .checkpoint import is_described, read_checkpoint
from .checkpoint.foreign_weights import load_checkpoint
from .run.origin import labels_digest
from .run.report import read_references
from .run.resume import check_early, keep_schedule, saved_run
from .speed.precision import pick_device, prepare_device
from .speed.teacher_cache import digest, weights_digest
from .trainer import Trainer, trainer_dict
from .validate import check_same_settings, place_faults, setting_faults

log = logging.getLogger("mdistiller")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def released_weights(arch: str, dataset: str, input_size: Optional[int]) -> str | os.PathLike[str]:
    """Return where the released checkpoint of `arch` for a data set lies.

    Raises:
        UserError: there is none of that name, or it is not there yet.
    """
    path = released_teacher(arch, dataset, input_size)
    if path is None:
        raise UserError(f"no checkpoint of {arch} is released for {dataset}; train one, and give its file")
    if not os.path.isfile(path):
        raise UserError(
            f"no checkpoint at {path}; get cifar_teachers.tar with mdistiller-fetch-ckpts"
            " (in a clone: tools/fetch_ckpts.py), or give a file of your own"
        )
    return path


def build_teacher(cfg: Any, info: DatasetInfo) -> nn.Module:
    """Return the teacher with its weights, once they are known to fit the data set."""
    arch = cfg.DISTILLER.TEACHER
    path = cfg.DISTILLER.TEACHER_WEIGHTS or released_weights(arch, info.name, info.input_size)
    checkpoint = read_checkpoint(path)
    trained_on = (info.name, info.input_size)
    if is_described(checkpoint):
        if checkpoint["arch"] != arch:
            raise UserError(
                f"DISTILLER.TEACHER is {arch}, but {path} holds a {checkpoint['arch']}; set it to {checkpoint['arch']}"
            )
        if checkpoint["head"] is not None:
            raise UserError(
                f"{path} is a student that needs its {checkpoint['head']['kind']} head; a teacher must be a bare model"
            )
        check_classes(checkpoint["classes"], info, path)
        if any(tuple(checkpoint[key]) != getattr(info, key) for key in ("mean", "std")) or (
            checkpoint["input_size"] != info.input_size
        ):
            log.info(
                f"note: the teacher was trained on images of {checkpoint['input_size']} px with DATASET.MEAN"
                f" {checkpoint['mean']} DATASET.STD {checkpoint['std']}, this run gives it {info.input_size} px,"
                f" {list(info.mean)}, {list(info.std)}"
            )
        fraction = checkpoint["config"]["DATASET"].get("VAL_FRACTION", 0.0)
        if checkpoint["dataset"] == info.name and fraction != cfg.DATASET.VAL_FRACTION:
            log.info(
                f"note: the teacher was trained with DATASET.VAL_FRACTION {fraction}, this run has"
                f" {cfg.DATASET.VAL_FRACTION}: some images to validate on may be ones that the teacher was trained on"
            )
        trained_on = (checkpoint["dataset"], checkpoint["input_size"])
    teacher = build_model(arch, info.num_classes, *trained_on)
    load_checkpoint(teacher, checkpoint, path)
    return teacher


def check_classes(classes: Any, info: DatasetInfo, path: str | os.PathLike[str]) -> None:
    """Refuse a described checkpoint whose classes are not those of the data set, in the same order."""
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


def load_checked(
    path: Optional[str] = None, overrides: Sequence[str] = (), resume: bool = False, overwrite: bool = False
) -> Any:
    """Return the configuration of a run, as `load_cfg` does, once all of it is known to work.

    A run that goes on has its saved length and stages, except where `overrides` give others; see `resuming`.

    Args:
        path: of a YAML file.
        overrides: `KEY VALUE KEY VALUE …`, words of the command line.
        resume, overwrite: as `Trainer.train` is to be called.

    Raises:
        UserError: what cannot be read at all; else a line for each unknown key, each value of a wrong type or out of
            range, each unknown name, and each combination that cannot work; else what differs from a run to resume.
    """
    cfg, faults = read_cfg(path, overrides)
    saved = None if faults or any(place_faults(cfg)) else saved_run(cfg, resume, overwrite)
    if saved is not None:
        keep_schedule(cfg, saved, overrides)
    # what stands in place of a refused value is not the user's: no line on that
    refused = [re.compile(rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)") for key, _ in faults]
    lines = [line for _, line in faults]
    refuse(lines + [line for line in config_faults(cfg) if not any(key.search(line) for key in refused)])
    if saved is not None:
        check_early(cfg, saved)
    return cfg


def config_faults(cfg: Any) -> List[str]:
    """Return a line for each fault of a configuration that shows before any data or model is there."""
    return [*_name_faults(cfg), *setting_faults(cfg)]


def _name_faults(cfg: Any) -> Iterator[str]:
    """Yield a line for each unknown name, and for each combination of names that cannot work."""
    for registry, name in (
        (distiller_dict, cfg.DISTILLER.TYPE),
        (trainer_dict, cfg.SOLVER.TRAINER),
        (dataset_dict, cfg.DATASET.TYPE),
    ):
        yield from _fault_of(registry.__getitem__, name)
    distiller = distiller_dict.get(cfg.DISTILLER.TYPE)
    needs_teacher = distiller is not None and distiller.needs_teacher
    for name in (cfg.DISTILLER.STUDENT, *([cfg.DISTILLER.TEACHER] if needs_teacher else [])):
        yield from _fault_of(find_model, name, cfg.DATASET.TYPE, cfg.DATASET.INPUT_SIZE)
    weights = cfg.DISTILLER.TEACHER_WEIGHTS
    if needs_teacher and weights and not find_file(weights).is_file():
        yield f"DISTILLER.TEACHER_WEIGHTS: no checkpoint at {weights}; give the path of a .pth file"
    yield from _fault_of(read_references, cfg.EXPERIMENT.REFERENCE)
    if cfg.SOLVER.TRAINER in trainer_dict:
        section = cfg.get(cfg.DISTILLER.TYPE, {})
        names = None
        if distiller is not None and knows(distiller, "loss_names", section):
            names = distiller.loss_names(section)
        yield from trainer_dict[cfg.SOLVER.TRAINER].update_rule.faults(cfg, names)


def _fault_of(call: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    try:
        call(*arguments)
    except UserError as error:
        yield str(error)


def build_trainer(cfg: Any) -> Trainer:
    """Build everything that `cfg` names, data first, and join it.

    Raises:
        UserError: a configuration that cannot work, missing data or weights, parts that do not fit each other.
    """
    refuse(config_faults(cfg))
    check_same_settings(cfg)
    distiller_class: Any = distiller_dict[cfg.DISTILLER.TYPE]
    trainer_class = trainer_dict[cfg.SOLVER.TRAINER]
    device = pick_device()
    prepare_device(device)
    train_loader, val_loader, num_data, num_classes = get_dataset(cfg, device)
    info = train_loader.info
    distributed.check_same(
        "the data set", f"{_in_short(train_loader)} for training, {_in_short(val_loader)} to validate"
    )
    root = info.root or cfg.DATASET.ROOT
    cfg = resolved(cfg, ROOT=root, INPUT_SIZE=info.input_size, MEAN=info.mean, STD=info.std)

    teacher = build_teacher(cfg, info) if distiller_class.needs_teacher else None
    if teacher is not None and distributed.get_world_size() > 1:
        distributed.check_same(f"the teacher {cfg.DISTILLER.TEACHER}", f"weights {weights_digest(teacher)[:12]}")
    # after the teacher, so that a student starts from the same weights whatever it is trained with
    seed_everything(cfg.EXPERIMENT.SEED)
    student = build_model(cfg.DISTILLER.STUDENT, num_classes, info.name, info.input_size)
    for name, model in ((cfg.DISTILLER.STUDENT, student), (cfg.DISTILLER.TEACHER, teacher)):
        if model is not None:
            _check_input_size(name, model, info.input_size)
    distiller = build_distiller(cfg.DISTILLER.TYPE, student, teacher, cfg, num_data)
    distiller.attach_data(train_loader)
    distiller.to(device)
    if not distributed.is_main_process():  # its numbers within the steps are its own
        seed_everything((cfg.EXPERIMENT.SEED + distributed.get_rank()) % 2**63)
    return trainer_class(experiment_name(cfg), distiller, train_loader, val_loader, cfg)


def _in_short(loader: Loader) -> str:
    about = digest({"info": repr(loader.info), "labels": labels_digest(loader)})
    return f"{loader.num_images} images with the labels {about[:12]}"


def _check_input_size(name: str, model: nn.Module, input_size: int) -> None:
    try:
        probe(model, input_size)
    except RuntimeError as error:
        if memory_shortage(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} cannot take images of {input_size} px ({reason}); set a larger DATASET.INPUT_SIZE"
        ) from None
