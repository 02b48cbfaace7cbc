"""Evaluation of a checkpoint file: what it is, what it was trained on, how accurate it is."""

from __future__ import annotations

import logging
from typing import Any, Dict, Optional, Sequence

import torch
from torch import nn

from ..dataset import get_val_loader
from ..paths import find_file
from .build import check_classes, released_weights
from .cfg import CFG, merge_known, merge_overrides
from .checkpoint import check_known, is_described, load_student, read_checkpoint
from .checkpoint.foreign_weights import weights_of
from .evaluate import evaluate
from .speed.precision import pick_device, prepare_device

log = logging.getLogger("mdistiller")


def eval_checkpoint(arch: str, path: Optional[str], overrides: Sequence[str] = ()) -> str:
    """Return a report on the accuracy of `arch` with the weights at `path`, on the validation set.

    Args:
        arch: the model's name.
        path: a checkpoint; `None` for the released teacher of that name.
        overrides: `KEY VALUE …`; they change the data set that the checkpoint describes, or the defaults without one.

    Raises:
        UserError: an unknown name, a missing or refused file, parts that do not fit each other.
    """
    cfg = CFG.clone()
    merge_overrides(cfg, overrides)
    source = path or released_weights(arch, cfg.DATASET.TYPE, cfg.DATASET.INPUT_SIZE)
    checkpoint = read_checkpoint(source)
    weights_of(checkpoint, source)  # fail before any data is read if the file holds no model
    described = is_described(checkpoint)
    if described:
        trained_on = checkpoint["config"]["DATASET"]
        given = dict(zip(overrides[::2], overrides[1::2]))
        asked = given.get("DATASET.TYPE", checkpoint["dataset"])
        if asked == checkpoint["dataset"] and "DATASET.ROOT" not in given:
            trained_on = _on_this_machine(trained_on)
        # another data set lies elsewhere, but the student sees it as it was taught to
        keys = trained_on if asked == checkpoint["dataset"] else {"INPUT_SIZE", "MEAN", "STD"} & set(trained_on)
        merge_known(cfg, {"DATASET": {key: trained_on[key] for key in keys}}, str(source))
        merge_overrides(cfg, overrides)
    check_known(checkpoint, arch, cfg.DATASET.TYPE, cfg.DATASET.INPUT_SIZE)
    device = pick_device()
    prepare_device(device)
    loader = get_val_loader(cfg, device)
    info = loader.info
    if described:
        check_classes(checkpoint["classes"], info, source)

    student = load_student(checkpoint, arch, info.num_classes, source, info.name, info.input_size).eval()
    # the layout of training, so that rounding and hence every digit is the same
    student.to(device).to(memory_format=torch.channels_last)
    accuracy = evaluate(student.forward_eval, loader)

    head = student.head
    parts = f"backbone {_millions(student.backbone)}" + (f", {head.kind} head {_millions(head)}" if head else "")
    lines = [
        f"model     {arch} from {source} ({parts})",
        f"data      {info.name}, {loader.num_images} validation images, {info.num_classes} classes",
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
    return "\n".join(lines)


def _on_this_machine(dataset: Dict[str, Any]) -> Dict[str, Any]:
    """Return a checkpoint's `DATASET` settings, without a folder that is not here: the data set's own then serves."""
    root = dataset.get("ROOT")
    if not isinstance(root, str) or not root or find_file(root).exists():
        return dataset
    log.info(
        f"note: the checkpoint was trained on data in {root}, which is not here; the default folder is used,"
        " DATASET.ROOT names another"
    )
    return {**dataset, "ROOT": ""}


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
