"""Random images and a random teacher, for speed measurements that do not depend on their content."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
import torch
from PIL import Image
from torch import nn
from yacs.config import CfgNode

from ..dataset import dataset_dict
from ..engine.build import seed_everything
from ..models import build_model

NUM_CLASSES = 100
IMAGES_PER_CLASS = 50  # for training; one for validation
IMAGE_SIZE = 32  # pixels


def make_images(folder: Path) -> List[str]:
    """Write random JPEG images to an image folder; return the config overrides `KEY VALUE …` that select it."""
    generator = np.random.default_rng(0)
    for split, count in (("train", IMAGES_PER_CLASS), ("val", 1)):
        for label in range(NUM_CLASSES):
            place = folder / split / f"{label:03}"
            place.mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR).save(place / f"{number}.jpg")
    half = "[0.5, 0.5, 0.5]"
    where = ["DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(folder), "DATASET.INPUT_SIZE", str(IMAGE_SIZE)]
    return [*where, "DATASET.MEAN", half, "DATASET.STD", half]


def save_random_teacher(cfg: CfgNode, folder: Path) -> str:
    """Save a teacher for `cfg` with random weights in `folder`; return the path of its checkpoint.

    Its BatchNorm statistics are those of random images. Without them, outputs grow from layer to layer, and a student
    that aligns with them diverges.
    """
    info = dataset_dict[cfg.DATASET.TYPE](cfg).info
    seed_everything(cfg.EXPERIMENT.SEED)
    options = cfg.DISTILLER
    models = options.TEACHER, info.num_classes, info.name, info.input_size
    teacher = build_model(*models, options.TEACHER_ARGS, options.TEACHER_FEATURES).train()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        teacher(torch.randn(16, 3, info.input_size, info.input_size))
    file = folder / "teacher.pth"
    torch.save({"model": teacher.state_dict()}, file)
    return str(file)
