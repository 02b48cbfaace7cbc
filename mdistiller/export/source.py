"""The student to export, and the images of its data set as uint8.

Shapes: `B` batch, `S` side in pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from ..dataset import DatasetInfo, dataset_dict, get_val_loader
from ..dataset.images.decode import View
from ..dataset.loading.image_check import SplitReport, unusable_error
from ..dataset.loading.in_memory import decode_chunks
from ..dataset.options import read_options
from ..distillers import DeployedStudent
from ..engine.cfg import CFG, merge_overrides
from ..engine.checkpoint import check_known, choose_arch, find_checkpoint, is_described, load_student, read_checkpoint
from ..engine.checkpoint.foreign_weights import weights_of
from ..engine.evaluation.eval_checkpoint import use_described_dataset
from ..engine.networks.teacher_outputs import check_classes
from ..errors import UserError
from ..models import may_build

PROGRAMS = (".onnx", ".pt2")  # exports that are no checkpoints


@dataclass(frozen=True)
class Source:
    """A deployed student with its description.

    Attributes:
        path: the path of its checkpoint.
        checkpoint: the content of the checkpoint, see `mdistiller/engine/checkpoint/student.py`.
        student: the student, in evaluation mode, on the CPU, in float32.
        cfg: the configuration, with the data set on which it was trained or another that was given.
        view: the transform by which validation prepares an image.
    """

    path: Path
    checkpoint: Dict[str, Any]
    student: DeployedStudent
    cfg: CfgNode
    view: View

    @property
    def info(self) -> DatasetInfo:
        """Name, classes, input size and normalization of the data that it was trained on."""
        mean, std = ((float(r), float(g), float(b)) for r, g, b in (self.checkpoint["mean"], self.checkpoint["std"]))
        return DatasetInfo(
            self.checkpoint["dataset"],
            tuple(map(str, self.checkpoint["classes"])),
            self.checkpoint["input_size"],
            mean,
            std,
        )


def read_source(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), model: str = "", own_code: Sequence[str] = ()
) -> Source:
    """Read the student of a checkpoint or a run folder.

    Args:
        path: the path of a checkpoint file or a run folder.
        overrides: `KEY VALUE …`, for another place of the data set, or for plug-ins.
        model: the name of the backbone. It must be given for code of the user's own, because a file must not choose
            what code runs; otherwise the checkpoint names it.
        own_code: the names of such models that may be used if the checkpoint names them.

    Raises:
        UserError: the file is missing or damaged, does not describe itself, as a file of weights alone, or needs
            `model`.
    """
    cfg = CFG.clone()
    merge_overrides(cfg, overrides)
    file = find_checkpoint(path)
    if file.suffix.lower() in PROGRAMS:
        raise UserError(
            f"{file} is an export for another runtime; give its checkpoint (.pth) or a .safetensors export, or use"
            " tools/predict.py"
        )
    checkpoint = read_checkpoint(file)
    weights_of(checkpoint, file)
    if not is_described(checkpoint):
        raise UserError(
            f"checkpoint {file} holds weights alone, as the released teachers do; expected a student that describes"
            " its classes, image size and normalization: give the student_best.pth that training writes"
        )
    # the user's path to the code, not the one that the checkpoint names
    model = model or next((name for name in own_code if may_build(name, checkpoint["arch"])), "")
    arch, dataset, size = choose_arch(checkpoint, model, file), checkpoint["dataset"], checkpoint["input_size"]
    use_described_dataset(cfg, checkpoint, overrides, str(file))
    check_known(checkpoint, arch, dataset, size)
    student = load_student(checkpoint, arch, len(checkpoint["classes"]), file, dataset, size).eval()
    view = View(size, margin=read_options(cfg, own_size=size).augment == "resized_crop")
    return Source(file, checkpoint, student.requires_grad_(False), cfg, view)


def val_pixels(source: Source, batch_size: int = 64) -> Tuple[int, Iterator[Tuple[Tensor, Tensor]]]:
    """Return the number of validation images, and their batches `(uint8 [B, S, S, 3], labels int64 [B])`.

    Raises:
        UserError: the data set cannot be read, or has other classes.
    """
    loader = get_val_loader(_unnormalized(source.cfg, batch_size), "cpu")
    check_classes(source.checkpoint["classes"], loader.info, source.path)
    return loader.num_images, ((_pixels(batch["image"]), batch["target"]) for batch in loader)


def training_pixels(source: Source, num_images: int) -> Tensor:
    """Return up to `num_images` training images of random choice, prepared as in validation, uint8 [n, S, S, 3].

    Raises:
        UserError: the data set cannot be read.
    """
    train = dataset_dict[source.cfg.DATASET.TYPE](source.cfg).train
    indices = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:num_images].sort().values
    part, findings = train.subset(indices), SplitReport()
    workers = source.cfg.DATASET.NUM_WORKERS
    chunks = list(decode_chunks(part, source.view, range(len(part)), workers, findings))
    if not chunks:
        raise unusable_error(list(findings.unusable.values()), len(part))
    return torch.from_numpy(np.concatenate(chunks))


def random_pixels(source: Source, num_images: int, batch_size: int = 64) -> Iterator[Tensor]:
    """Yield images of independent random pixels, uint8 [B, S, S, 3], always the same."""
    size, generator = source.view.size, torch.Generator().manual_seed(0)
    for start in range(0, num_images, batch_size):
        shape = (min(batch_size, num_images - start), size, size, 3)
        yield torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def to_input(pixels: Tensor) -> Tensor:
    """Return the input of an export, float32 [B, 3, S, S] in [0, 1], of images uint8 [B, S, S, 3]."""
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 255


def _unnormalized(cfg: CfgNode, batch_size: int) -> CfgNode:
    """Return a copy in which the loaders yield images in [0, 1], cropped as the model was trained for."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.MEAN, cfg.DATASET.STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    cfg.DATASET.TEST.BATCH_SIZE = batch_size
    return cfg


def _pixels(image: Tensor) -> Tensor:
    """Return images in [0, 1], `[B, 3, S, S]`, as the bytes that they were made of."""
    return (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
