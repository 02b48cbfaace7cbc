"""Finds images without labels (`DATASET.UNLABELED`)."""

from __future__ import annotations

from collections import Counter

from ... import paths
from ...errors import UserError
from ..images.file_names import picture_suffixes
from ..loading.splits import FileSplit
from .class_folders import images_below, is_folder


def find_unlabelled(given: str) -> FileSplit:
    """Return the sorted images at any depth below the folder `given`, each with the label 0.

    Raises:
        UserError: it is not a folder, cannot be read, or holds fewer than two images.
    """
    folder = paths.find_file(given)
    if not is_folder(folder):
        raise UserError(f"DATASET.UNLABELED {folder} is not a folder; expected a folder of images without labels")
    files = images_below(folder, picture_suffixes(), Counter())
    if len(files) < 2:
        raise UserError(f"DATASET.UNLABELED {folder} holds {len(files)} images; expected at least 2, or no UNLABELED")
    return FileSplit(files, [0] * len(files))
