"""Evaluation of a checkpoint file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from ...dataset import VAL, get_val_loader
from ...errors import UserError
from ...paths import find_file
from ..cfg import CFG, merge_known, merge_overrides
from ..checkpoint import check_known, choose_arch, find_checkpoint, is_described, load_student, read_checkpoint
from ..checkpoint.foreign_weights import weights_of
from ..networks.build import released_weights
from ..networks.teacher_outputs import check_classes
from ..speed.precision import pick_device, prepare_device
from .confusion import Confusion
from .cost_report import cost_text, speed_text, teacher_lines
from .evaluate import evaluate

NOUNS = {VAL: "validation", "train": "training"}  # the others are called by the names of their folders

log = logging.getLogger("mdistiller")


def eval_checkpoint(
    model: str,
    path: Optional[str],
    overrides: Sequence[str] = (),
    split: str = VAL,
    per_class: Optional[Path] = None,
    speed: bool = True,
) -> str:
    """Evaluate a model on the validation set; return a report of several lines.

    Args:
        model: the name of the model; empty for the one that the checkpoint records.
        path: the checkpoint or the run folder; `None` for the released teacher of the name `model`.
        overrides: `KEY VALUE …`; they change the data set that the checkpoint describes, or the defaults.
        split: the images to evaluate on: `val`, or another folder beside `train/` and `val/` in an image folder.
        per_class: the CSV file for the accuracy of each class and the confusion matrix; `None` for none.
        speed: whether to measure images per second.

    Raises:
        UserError: a name is unknown, the file is missing or invalid, or the parts do not fit each other.
    """
    cfg = CFG.clone()
    merge_overrides(cfg, overrides)
    if not path and not model:
        raise UserError(
            "nothing to evaluate; give a checkpoint or the folder of a run (-c), or a released teacher (-m)"
        )
    source = find_checkpoint(path) if path else released_weights(model, cfg.DATASET.TYPE, cfg.DATASET.INPUT_SIZE)
    checkpoint = read_checkpoint(source)
    weights_of(checkpoint, source)  # fails before data are read if the file holds no model
    described = is_described(checkpoint)
    arch = choose_arch(checkpoint, model, source)  # before code of the user's own is imported
    if described:
        use_described_dataset(cfg, checkpoint, overrides, str(source))
        note_missing_folder(cfg, checkpoint)
    check_known(checkpoint, arch, cfg.DATASET.TYPE, cfg.DATASET.INPUT_SIZE)
    device = pick_device()
    prepare_device(device)
    loader = get_val_loader(cfg, device, split)
    info = loader.info
    if described:
        check_classes(checkpoint["classes"], info, source)

    options = cfg.DISTILLER.STUDENT_ARGS, cfg.DISTILLER.STUDENT_FEATURES
    student = load_student(checkpoint, arch, info.num_classes, source, info.name, info.input_size, *options).eval()
    # the memory format of training, so that rounding is the same
    student.to(device).to(memory_format=torch.channels_last)
    if per_class:
        confusion = Confusion(info.num_classes)
        accuracy = evaluate(student.forward_eval, loader, observe=confusion.add)
        confusion.write(per_class, info.classes)
    else:
        accuracy = evaluate(student.forward_eval, loader)

    head = student.head
    parts = f"backbone {_millions(student.backbone)}" + (f", {head.kind} head {_millions(head)}" if head else "")
    lines = [
        f"model     {arch} from {source} ({parts})",
        f"data      {info.name}, {loader.num_images} {NOUNS.get(split, split)} images, {info.num_classes} classes",
        f"deployed  top-1 {accuracy['deployed_top1']:.2f}  top-5 {accuracy['deployed_top5']:.2f}",
    ]
    if head is not None:
        lines.append(
            f"probe     top-1 {accuracy['probe_top1']:.2f}  top-5 {accuracy['probe_top5']:.2f}"
            "  (the bare backbone with its own classifier)"
        )
    if described:
        recorded = checkpoint["accuracy"]
        lines.append(
            f"recorded  top-1 {recorded['deployed_top1']:.2f}  top-5 {recorded.get('deployed_top5', float('nan')):.2f}"
            f"  (by training, epoch {checkpoint['epoch']})"
        )
    file = find_file(source)
    lines.append(f"cost      {cost_text(student.backbone, head, info.input_size, file)}")
    if speed:
        lines.append(f"speed     {speed_text(student.backbone, head, info.input_size)}")
    given = "DISTILLER.TEACHER" in overrides[::2]
    if given or described:
        section = cfg.DISTILLER if given else checkpoint["config"].get("DISTILLER", {})
        lines += teacher_lines(section, given, info.name, info.num_classes, info.input_size, speed)
    return "\n".join(lines)


def use_described_dataset(cfg: CfgNode, checkpoint: Dict[str, Any], overrides: Sequence[str], source: str) -> None:
    """Change `cfg`, in place, to the data set that a checkpoint was trained on, except where `overrides` name another.

    Another data set has a folder of its own, but the student sees its images as in training.
    """
    trained_on = checkpoint["config"]["DATASET"]
    given = dict(zip(overrides[::2], overrides[1::2]))
    same = given.get("DATASET.TYPE", checkpoint["dataset"]) == checkpoint["dataset"]
    if same and "DATASET.ROOT" not in given:
        trained_on = _on_this_machine(trained_on)
    keys = trained_on if same else {"INPUT_SIZE", "MEAN", "STD", "AUGMENT"} & set(trained_on)
    merge_known(cfg, {"DATASET": {key: trained_on[key] for key in keys}}, source)
    merge_overrides(cfg, overrides)


def _on_this_machine(dataset: Dict[str, Any]) -> Dict[str, Any]:
    """Return the `DATASET` settings of a checkpoint, without a folder that does not exist on this machine."""
    root = dataset.get("ROOT")
    if not isinstance(root, str) or not root or find_file(root).exists():
        return dataset
    return {**dataset, "ROOT": ""}


def note_missing_folder(cfg: CfgNode, checkpoint: Dict[str, Any]) -> None:
    """Log it if validation images come from the default folder because the one of the training is not here."""
    trained_on = checkpoint["config"]["DATASET"].get("ROOT")
    if trained_on and not cfg.DATASET.ROOT and checkpoint["dataset"] == cfg.DATASET.TYPE:
        log.info(
            f"note: the checkpoint was trained on data in {trained_on}, which is not here; the default folder is used,"
            " DATASET.ROOT names another"
        )


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
