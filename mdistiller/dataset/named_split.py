"""A folder of labeled images beside `train/` and `val/`, such as `test/`, to evaluate on."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from .. import paths
from ..errors import UserError, listed
from .folders.class_folders import class_folders, find_images, folders_in, is_folder
from .folders.layout import TRAIN
from .imagefolder import imagefolder
from .info import DatasetInfo
from .loading.splits import Splits, dataset_dict
from .options import DEFAULT_SIZE, read_options


def named_split(cfg: CfgNode, name: str) -> Splits:
    """Return the images of `<DATASET.ROOT>/<name>/<class>/`, in the place of the validation images.

    Its class folders give the labels. If `train/` is there, they must be the same.

    Raises:
        UserError: the data set is no image folder, the folder is missing, or its classes are not those of `train/`.
    """
    if cfg.DATASET.TYPE != "imagefolder":
        dataset_dict[cfg.DATASET.TYPE]  # an unknown name has its own message
        raise UserError(
            f"--split {name} needs DATASET.TYPE imagefolder, given {cfg.DATASET.TYPE}; leave --split out, or give an"
            " image folder"
        )
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else None
    if root is None or not is_folder(root):
        raise UserError(f"--split {name} needs DATASET.ROOT, the folder that holds {name}/; given {cfg.DATASET.ROOT!r}")
    if Path(name).name != name or name in ("", "..") or not is_folder(root / name):
        here = listed(folders_in(root)) or "no folders"
        raise UserError(f"--split {name}: there is no such folder in {root}, which holds {here}; give one of these")
    options = read_options(cfg, own_size=DEFAULT_SIZE)
    layout = f"expected {root / name}/<class>/<image>"
    classes = class_folders(root / name, layout)
    if is_folder(root / TRAIN):
        expected = class_folders(root / TRAIN, layout)
        for fault, names in (("has", set(classes) - set(expected)), ("lacks", set(expected) - set(classes))):
            if names:
                raise UserError(
                    f"--split {name} {fault} the classes {listed(sorted(names))}, unlike {TRAIN}/ in {root}; give both"
                    " the same class folders"
                )
    if options.statistics is not None:
        mean, std = options.statistics
    else:
        measured = imagefolder(cfg).info
        mean, std = measured.mean, measured.std
    info = DatasetInfo("imagefolder", tuple(classes), options.input_size, mean, std, root)
    images = find_images(root / name, classes)
    return Splits(images, images, info, options.val_fraction, options)
