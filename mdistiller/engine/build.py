"""Builds the objects that a configuration names: data, teacher, student, distiller, trainer."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from .. import distributed
from ..dataset import Loader, get_dataset
from ..distillers import distiller_dict
from ..distillers._common import blank_outputs
from ..distillers._plugins import build_distiller
from ..errors import UserError, memory_shortage, refuse
from ..models._adapt import AdaptedModel, evaluation_mode, noise
from .cfg import experiment_name, resolved
from .networks.build import build_student, build_teacher, with_student_input
from .run.origin import labels_digest
from .solver.frozen_batchnorm import freeze_statistics
from .solver.linear_probe import check_probe
from .speed.precision import pick_device, prepare_device
from .speed.teacher_cache import digest, weights_digest
from .trainer import Trainer, trainer_dict
from .validate import check_same_settings, config_errors


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_trainer(cfg: CfgNode, validate: bool = True) -> Trainer:
    """Build everything that `cfg` names: data, teacher, student, distiller, and the trainer that joins them.

    Args:
        cfg: the configuration.
        validate: whether to validate `cfg`; `False` is only for an unchanged `cfg` that `load_valid_cfg` returned.

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
    cfg = with_student_input(cfg)
    train_loader, val_loader, num_data, _ = get_dataset(cfg, device)
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
    student = build_student(cfg, info)
    for name, model in ((cfg.DISTILLER.STUDENT, student), (cfg.DISTILLER.TEACHER, teacher)):
        if model is not None:
            _check_input_size(name, model, info.input_size)
    if cfg.SOLVER.PROBE_EPOCHS:
        check_probe(student, num_data, train_loader.device)
    if cfg.SOLVER.FREEZE_BN:
        freeze_statistics(student)
    distiller = build_distiller(cfg.DISTILLER.TYPE, student, teacher, cfg, num_data)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise UserError(f"{cfg.DISTILLER.STUDENT} has no parameter to train; set requires_grad in its code")
    if distiller.channels_last or cfg.SOLVER.PROBE_EPOCHS:
        for name, model in ((cfg.DISTILLER.STUDENT, student), (cfg.DISTILLER.TEACHER, teacher)):
            if isinstance(model, AdaptedModel):
                _check_memory_format(name, model, info.input_size)
    distiller.attach_data(train_loader)
    distiller.to(device)
    if not distributed.is_main_process():  # each process draws its own numbers within the steps
        seed_everything((cfg.EXPERIMENT.SEED + distributed.get_rank()) % 2**63)
    return trainer_class(experiment_name(cfg), distiller, train_loader, val_loader, cfg)


def _in_short(loader: Loader) -> str:
    about = digest({"info": repr(loader.info), "labels": labels_digest(loader)})
    more = "" if loader.unlabeled is None else f" and {loader.unlabeled.num_images} without labels"
    return f"{loader.num_images} images with the labels {about[:12]}{more}"


def _check_input_size(name: str, model: nn.Module, input_size: int) -> None:
    try:
        blank_outputs(model, input_size)
    except RuntimeError as error:
        if memory_shortage(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} cannot take images of {input_size} px ({reason}); set a larger DATASET.INPUT_SIZE"
        ) from None


def _check_memory_format(name: str, model: nn.Module, input_size: int) -> None:
    """Raise a UserError if a model cannot take images in the format channels_last, in which steps run."""
    with evaluation_mode(model):
        try:
            model(noise(model, input_size).to(memory_format=torch.channels_last))
        except RuntimeError as error:
            if memory_shortage(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{name} cannot take images in the memory format channels_last ({reason}); use reshape instead of"
                " view in its forward method"
            ) from None
