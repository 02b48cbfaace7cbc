"""The layout of an image folder: `train/` and `val/`, each with one folder per class."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple, TypeVar

import torch

from ...errors import UserError, listed
from ..loading.encoded import EncodedSplit
from ..loading.splits import FileSplit
from .class_folders import check_same_classes, class_folders, entries, find_images, is_folder

log = logging.getLogger("mdistiller")

Find = Callable[[], FileSplit]
Images = TypeVar("Images", bound=EncodedSplit)

TRAIN, VAL = "train", "val"  # the parts of a data set, whatever it calls them
VAL_NAMES = (VAL, "valid", "validation")

PARTS_OF_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(VAL_NAMES, VAL),
    **dict.fromkeys(("test", "testing"), "test"),
}


def part_of(name: str) -> str:
    """Return the part of a data set that a name contains as a word: "train", "val", "test", or "" if it has none.

    Words end at anything but letters, so the part of `train-00000-of-00002` is "train". The last word counts.
    """
    words = re.split("[^a-z]+", name.lower())
    return next((PARTS_OF_WORDS[word] for word in reversed(words) if word in PARTS_OF_WORDS), "")


def find_val(root: Path) -> Optional[Path]:
    """Return the validation folder of `root` under any of its names, in upper or lower case, or `None`.

    Raises:
        UserError: there are several, or see `is_folder`.
    """
    names = sorted(entry.name for entry in entries(root)) if is_folder(root) else []
    found = [root / name for name in names if name.lower() in VAL_NAMES and is_folder(root / name)]
    if len({os.path.realpath(folder) for folder in found}) > 1:
        both = " and ".join(folder.name for folder in found)
        raise UserError(f"{root} holds {both}, and each is a name of the validation folder; keep one of them")
    return found[0] if found else None


def check_root(root: Path, needed: str, layout: str) -> None:
    """Raise a UserError if `root` has neither a training nor a validation folder; it says where the data seem to be.

    Args:
        root: folder of the data set.
        needed: name of the missing folder, for the message.
        layout: the expected layout, for the message.
    """
    if is_folder(root / TRAIN) or find_val(root):
        return
    missing = f"{root / needed} is missing"
    if not is_folder(root):
        raise UserError(f"{missing}; {layout}")
    names = sorted(entry.name for entry in entries(root) if os.path.isdir(entry))
    inside = [name for name in names if os.path.isdir(root / name / TRAIN)]  # False without permission
    if root.name in (TRAIN, *VAL_NAMES):
        missing += f": {root} seems to be a part of a data set, set DATASET.ROOT to {root.parent}"
    elif inside:
        missing += f", but {root / inside[0] / TRAIN} is there: set DATASET.ROOT to {root / inside[0]}"
    elif len(names) > 1:
        missing += (
            f", but {root} holds {len(names)} folders ({listed(names)}): if these are the classes, move them to"
            f" {root / TRAIN} and set DATASET.VAL_FRACTION 0.1"
        )
    raise UserError(f"{missing}; {layout}")


def find_parts(root: Path, val_fraction: float, layout: str) -> Tuple[List[str], Find, Find]:
    """Return the classes of an image folder, and functions that find its training and validation images.

    Args:
        root: folder of the data set.
        val_fraction: fraction of the training images to hold out if there is no validation folder; 0 for none.
        layout: the expected layout, for messages.

    Raises:
        UserError: a folder is missing, has another layout, or cannot be read.
    """
    check_root(root, TRAIN if val_fraction > 0 else VAL, layout)
    train_folder, val_folder = root / TRAIN, find_val(root)
    if val_folder is None:
        if val_fraction == 0:
            raise UserError(
                f"{root / VAL} is missing{_test_hint(root)}; {layout}, or set DATASET.VAL_FRACTION 0.1"
                f" to validate on a tenth of {TRAIN}/"
            )
        classes = class_folders(train_folder, layout)
        train, val = hold_out(find_images(train_folder, classes), train_folder, classes, val_fraction)
        return classes, lambda: train, lambda: val
    check_val_fraction(val_fraction, True, root)
    classes = class_folders(val_folder, layout)

    def find_train() -> FileSplit:
        check_same_classes(root, class_folders(train_folder, layout), classes)
        return find_images(train_folder, classes)

    return classes, find_train, lambda: find_images(val_folder, classes)


def _test_hint(root: Path) -> str:
    tests = [name for name in ("test", "testing") if os.path.isdir(root / name)]
    return f" ({root / tests[0]} is not used instead: a test set must not choose the best epoch)" if tests else ""


def check_val_fraction(fraction: float, has_val: bool, place: Path, has_test: bool = False) -> None:
    """Check that a data set has either validation images or a fraction of training images to hold out.

    Args:
        fraction: the value of `DATASET.VAL_FRACTION`.
        has_val: whether the data set has validation images.
        place: its folder, or the file that lists its images, for the message.
        has_test: whether it has test images, which the message mentions.

    Raises:
        UserError: it has both or neither.
    """
    if fraction > 0 and has_val:
        raise UserError(
            f"DATASET.VAL_FRACTION is {fraction:g}, which takes validation images out of the training images, but"
            f" {place} has validation images; set DATASET.VAL_FRACTION 0"
        )
    if fraction == 0 and not has_val:
        hint = " (its test images are not used instead: they must not choose the best epoch)" if has_test else ""
        raise UserError(
            f"{place} has no validation images{hint}; set DATASET.VAL_FRACTION 0.1 to validate on a tenth of the"
            " training images"
        )


def hold_out(files: Images, folder: Path, classes: Sequence[str], fraction: float) -> Tuple[Images, Images]:
    """Split images into training and validation images.

    Of a class with `n` images, `round(fraction · n)` are held out for validation, at least one and at most `n − 1`. The
    choice depends only on a hash of each file name below `folder`, not on `EXPERIMENT.SEED` or the location of
    `folder`, so a teacher, its student and a later evaluation hold out the same images of a folder. Shards and
    tables name images differently, so they hold out other images. Adding or removing a file moves at most one other
    file of its class. A smaller fraction selects a subset of a larger one.

    Args:
        files: the images, with labels that are positions in `classes`.
        folder: the folder that contains the images.
        classes: the class names, which are also the names of the class folders.
        fraction: the fraction of the images to hold out, in (0, 1).

    Raises:
        UserError: a class has fewer than two images.
    """

    def rank(index: int) -> bytes:
        path = files.path(index)
        with suppress(ValueError):  # a member of a shard may have an absolute name
            path = path.relative_to(folder)
        name = path.as_posix()
        return hashlib.blake2b(os.fsencode(name), digest_size=8, person=b"validation").digest()

    held_out = torch.zeros(len(files), dtype=torch.bool)
    members_of: List[List[int]] = [[] for _ in classes]
    for index, label in enumerate(files.targets.tolist()):
        members_of[label].append(index)
    for name, members in zip(classes, members_of):
        if len(members) < 2:
            raise UserError(
                f"the class {folder / name} holds {'a single' if members else 'no'} image; DATASET.VAL_FRACTION needs"
                " two of each class, one to train and one to validate on"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out[sorted(members, key=rank)[:count]] = True
    count, total = int(held_out.sum()), len(files)
    log.info(
        "DATASET.VAL_FRACTION %g: %d of the %d images in %s are for validation, the others for training",
        *(fraction, count, total, folder),
    )
    return files.subset((~held_out).nonzero().squeeze(1)), files.subset(held_out.nonzero().squeeze(1))
