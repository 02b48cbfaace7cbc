"""Builds the objects that a configuration names: data, teacher, student, distiller, trainer."""

from __future__ import annotations

import logging
import os
import random
from typing import Any, Optional

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from .. import distributed
from ..dataset import Loader, get_dataset
from ..dataset.info import DatasetInfo
from ..distillers import distiller_dict
from ..distillers._common import probe
from ..distillers._plugins import build_distiller
from ..errors import UserError, memory_shortage, refuse
from ..models import build_model, released_teacher
from .cfg import experiment_name, resolved
from .checkpoint import is_described, load_checkpoint, read_checkpoint
from .run.origin import labels_digest
from .speed.precision import pick_device, prepare_device
from .speed.teacher_cache import digest, weights_digest
from .trainer import Trainer, trainer_dict
from .validate import check_same_settings, config_errors

log = logging.getLogger("mdistiller")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def released_weights(arch: str, dataset: str, input_size: Optional[int]) -> str | os.PathLike[str]:
    """Return the path of the released checkpoint of `arch` for a data set.

    Raises:
        UserError: none is released, or it has not been downloaded.
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


def build_teacher(cfg: CfgNode, info: DatasetInfo) -> nn.Module:
    """Build the teacher and load its weights.

    Raises:
        UserError: the weights do not fit the model or the data set.
    """
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


def build_trainer(cfg: CfgNode, validate: bool = True) -> Trainer:
    """Build everything that `cfg` names: data, teacher, student, distiller, and the trainer that joins them.

    Args:
        cfg: the configuration.
        validate: `False` skips validation; only for an unchanged `cfg` that `load_valid_cfg` returned.

    Raises:
        UserError: the configuration is invalid, data or weights are missing, or parts do not fit each other.
    """
    if validate:
        refuse(config_errors(cfg))
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
    # Seed after the teacher is built, so that the student starts from the same weights with every method.
    seed_everything(cfg.EXPERIMENT.SEED)
    student = build_model(cfg.DISTILLER.STUDENT, num_classes, info.name, info.input_size)
    for name, model in ((cfg.DISTILLER.STUDENT, student), (cfg.DISTILLER.TEACHER, teacher)):
        if model is not None:
            _check_input_size(name, model, info.input_size)
    distiller = build_distiller(cfg.DISTILLER.TYPE, student, teacher, cfg, num_data)
    distiller.attach_data(train_loader)
    distiller.to(device)
    if not distributed.is_main_process():  # each process draws its own numbers within the steps
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
