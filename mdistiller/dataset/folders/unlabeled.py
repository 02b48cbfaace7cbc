"""Finds images without labels (`DATASET.UNLABELED`)."""

from __future__ import annotations

import logging
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Iterator, Tuple

import torch

from ... import paths
from ...errors import UserError
from ..images.file_names import picture_suffixes
from ..loading.splits import FileSplit, ImageSplit
from .class_folders import images_below, is_folder

log = logging.getLogger("mdistiller")


def find_unlabeled(given: str, val: ImageSplit) -> FileSplit:
    """Return the sorted images at any depth below the folder `given`, each with the label 0.

    Files that are validation images too are left out, with a note.

    Args:
        given: the folder.
        val: the validation images. Those that are not in files of their own are not compared.

    Raises:
        UserError: it is not a folder, cannot be read, or holds fewer than two images.
    """
    folder = paths.find_file(given)
    if not is_folder(folder):
        raise UserError(f"DATASET.UNLABELED {folder} is not a folder; expected a folder of images without labels")
    found = images_below(folder, picture_suffixes(), Counter())
    split = FileSplit(found, [0] * len(found))
    if isinstance(val, FileSplit):
        split = _without(split, val)
    if len(split) < 2:
        raise UserError(f"DATASET.UNLABELED {folder} holds {len(split)} images; expected at least 2, or no UNLABELED")
    return split


def _without(split: FileSplit, val: FileSplit) -> FileSplit:
    """Return the files of a split that are not files of another one, whatever links lead to them."""
    real = lru_cache(os.path.realpath)

    def places(of: FileSplit) -> Iterator[Tuple[str, str]]:
        for path in of.paths():
            place = Path(real(path)) if path.is_symlink() else path
            yield real(place.parent), place.name

    kept_out = set(places(val))
    keep = torch.tensor([place not in kept_out for place in places(split)], dtype=torch.bool)
    if keep.all():
        return split
    log.info("note: %d images of DATASET.UNLABELED are validation images; they are left out", int((~keep).sum()))
    return split.subset(keep.nonzero().flatten())
