"""Tiny-ImageNet: 100,000 training and 10,000 validation images of 64×64 px in 200 classes (Le and Yang, 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

from yacs.config import CfgNode

from .. import paths
from ..errors import UserError
from .folders import check_same_classes, class_folders, find_images
from .info import DatasetInfo
from .options import read_options
from .splits import FileSplit, Splits, dataset_dict

FOLDER = "tiny-imagenet-200"
SIZE = 64  # px
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2770, 0.2691, 0.2821)
ANNOTATIONS = "val_annotations.txt"
LAYOUT = (
    "unpack tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) into data/, or set DATASET.ROOT to"
    f" the folder that holds train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/{ANNOTATIONS}"
)


@dataset_dict.register("tiny_imagenet")
def tiny_imagenet(cfg: CfgNode) -> Splits:
    """Find the images below `DATASET.ROOT`, by default `tiny-imagenet-200/` of the data folder.

    The archive's own layout, or one whose validation images were moved into a folder per class. Labels go by the sorted
    names of the training folders, not by wnids.txt, as in MDistiller. Its augmentation is a rotation by up to 20° and
    flips; here it is that of small images, crops out of a zero-padded image and flips. MEAN and STD are those of the
    images; code for this set often divides by (0.2302, 0.2265, 0.2262) instead, so give a teacher that was trained so
    its own `DATASET.MEAN` and `DATASET.STD`.

    Raises:
        UserError: what is missing, in one line.
    """
    options = read_options(cfg, own_size=SIZE)
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else paths.data_root() / FOLDER
    classes = class_folders(root / "train", LAYOUT)
    if (root / "val" / "images").is_dir():
        val = _annotated(root / "val", classes)
    else:
        check_same_classes(root, classes, class_folders(root / "val", LAYOUT))
        val = find_images(root / "val", classes)
    mean, std = options.statistics or (MEAN, STD)
    info = DatasetInfo("tiny_imagenet", tuple(classes), options.input_size, mean, std, root)
    return Splits(lambda: find_images(root / "train", classes), val, info)


def _annotated(folder: Path, classes: Sequence[str]) -> FileSplit:
    """Read the validation images' names and classes: a line each, separated by tabs, with a box that is not used."""
    labels = {name: label for label, name in enumerate(classes)}
    file = folder / ANNOTATIONS
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
        raise UserError(f"{file}, which tells the classes of {folder / 'images'}, is {reason}; {LAYOUT}") from error
    files: List[Path] = []
    targets: List[int] = []
    for number, row in enumerate(rows, start=1):
        if len(row) < 2 or row[1] not in labels:
            raise UserError(f"{file} entry {number} is {' '.join(row)!r}; expected an image and a folder of train/")
        files.append(folder / "images" / row[0])
        targets.append(labels[row[1]])
    if not files:
        raise UserError(f"{file} is empty; {LAYOUT}")
    return FileSplit(files, targets)
