"""Tiny-ImageNet: 100,000 training and 10,000 validation images of 64×64 px in 200 classes (Le and Yang, 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

from yacs.config import CfgNode

from .. import paths
from ..errors import UserError
from .folders.class_folders import check_same_classes, class_folders, find_images, is_folder
from .folders.layout import TRAIN, VAL, check_root, find_val
from .info import DatasetInfo
from .loading.splits import FileSplit, Splits, dataset_dict
from .options import read_options

FOLDER = "tiny-imagenet-200"
SIZE = 64  # px
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2302, 0.2265, 0.2262)  # MDistiller's, see below
ANNOTATIONS = "val_annotations.txt"
BOXES = ".txt"  # files of bounding boxes in the class folders of train/, which are not used
LAYOUT = (
    "unpack tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) into data/, or set DATASET.ROOT to"
    f" the folder that holds train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/{ANNOTATIONS}"
)


@dataset_dict.register("tiny_imagenet")
def tiny_imagenet(cfg: CfgNode) -> Splits:
    """Find the images below `DATASET.ROOT`, by default `tiny-imagenet-200/` in the data folder.

    The layout is that of the archive, or one with a folder per class for the validation images. As in MDistiller,
    labels follow the sorted names of the training folders, not wnids.txt, and images are normalized by MEAN and STD.
    The actual standard deviation is (0.2770, 0.2691, 0.2821); set `DATASET.MEAN` and `DATASET.STD` for a teacher
    trained with it. The shipped configs use MDistiller's augmentation, `DATASET.AUGMENT rotate_flip`.

    Raises:
        UserError: a file or folder is missing or has another layout.
    """
    options = read_options(cfg, own_size=SIZE)
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else paths.data_root() / FOLDER
    check_root(root, TRAIN, LAYOUT)
    classes = class_folders(root / TRAIN, LAYOUT)
    val_folder = find_val(root) or root / VAL
    if is_folder(val_folder / "images"):
        val = _annotated(val_folder, classes)
    else:
        check_same_classes(root, classes, class_folders(val_folder, LAYOUT))
        val = find_images(val_folder, classes)
    mean, std = options.statistics or (MEAN, STD)
    info = DatasetInfo("tiny_imagenet", tuple(classes), options.input_size, mean, std, root)
    return Splits(lambda: find_images(root / TRAIN, classes, companions=(BOXES,)), val, info, options=options)


def _annotated(folder: Path, classes: Sequence[str]) -> FileSplit:
    """Read names and classes of the validation images: one tab-separated line per image, with an unused box."""
    labels = {name: label for label, name in enumerate(classes)}
    file = folder / ANNOTATIONS
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
        raise UserError(f"{file}, which gives the classes of {folder / 'images'}, is {reason}; {LAYOUT}") from error
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
