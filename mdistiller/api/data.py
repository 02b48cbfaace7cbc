"""Training and validation data as Python programs give them: a name, folders, or PyTorch data sets."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from torch import Tensor
from torch.utils.data import Dataset
from yacs.config import CfgNode

from ..dataset import DatasetInfo, Splits, dataset_dict
from ..dataset.folders.class_folders import check_same_classes, class_folders, find_images, is_folder
from ..dataset.folders.layout import TRAIN, VAL, find_val
from ..dataset.given import NAME
from ..dataset.images.decode import View
from ..dataset.loading.dataset_split import READ_TWICE, DatasetSplit, split_of
from ..dataset.loading.encoded import UnusableImage
from ..dataset.loading.in_memory import decode_all
from ..dataset.loading.splits import ImageSplit, of_any_size
from ..dataset.loading.statistics import measure_sample
from ..dataset.options import DEFAULT_SIZE, Channels, Options, read_options
from ..errors import UserError, did_you_mean, listed
from ..paths import user_path

log = logging.getLogger("mdistiller")

Data = Union[str, "os.PathLike[str]", Dataset]
LAYOUT = "expected FOLDER/<class>/<image>"
ONLY_DATASETS = (
    "classes is for a Dataset only; folders and named data sets have class names of their own, so leave classes out"
)


class GivenData(NamedTuple):
    """Data for a run.

    Attributes:
        keys: the configuration keys, with values, that select the data.
        make: a function that returns the data, for `DATASET.TYPE: python`; `None` if `keys` alone select them.
    """

    keys: Dict[str, Any]
    make: Optional[Callable[[CfgNode], Splits]] = None


class Part(NamedTuple):
    """Images with labels.

    Attributes:
        split: the images.
        classes: the class names, in label order; `None` if the data do not name them.
        side: the side of a `Dataset`'s first image in pixels, `None` if it is not square; for files the default.
    """

    split: ImageSplit
    classes: Optional[List[str]]
    side: Optional[int]


def read_data(
    train: Data, val: Optional[Data], classes: Optional[Sequence[str]] = None, otherwise: Sequence[str] = ()
) -> GivenData:
    """Find the data of a run.

    Args:
        train: the name of a data set; a folder with `<class>/<image>`, or with `train/` and `val/` of this layout; or a
            PyTorch `Dataset` of (image, label), see `as_picture` for images.
        val: a folder with `<class>/<image>` or a `Dataset`; `None` if `train` names both parts.
        classes, otherwise: see `class_names`.

    Raises:
        UserError: data are missing, have another layout, or do not fit each other.
    """
    if classes is not None and any(isinstance(data, (str, os.PathLike)) for data in (train, val)):
        raise UserError(ONLY_DATASETS)
    if is_name(train):
        if val is not None:
            raise UserError(f"the data set {train!r} has its own validation images; leave val_data out")
        return GivenData({"DATASET.TYPE": train})
    folder, val_folder = _folder(train, "train_data"), _folder(val, "val_data")
    if folder is not None and (val is None or (val_folder == folder and is_folder(folder / TRAIN))):
        return GivenData({"DATASET.TYPE": "imagefolder", "DATASET.ROOT": str(folder)})
    if folder is not None and val_folder is not None and _are_one_root(folder, val_folder):
        return GivenData({"DATASET.TYPE": "imagefolder", "DATASET.ROOT": str(folder.parent)})
    train_part = read_part(train, "train_data", TRAIN)
    if val is None:
        raise UserError("val_data is missing; give a folder or a Dataset whose images the networks are not trained on")
    val_part = read_part(val, "val_data", VAL)
    names = class_names(classes, train_part, val_part, otherwise=otherwise)
    if names == [str(label) for label in range(len(names))] and classes is None:
        _check_labels(train_part.split.targets, len(names))

    def make(cfg: CfgNode) -> Splits:
        return _splits(cfg, train_part, val_part, names)

    return GivenData({"DATASET.TYPE": NAME}, make if folder is None else of_any_size(make))


def _check_labels(targets: Tensor, num_classes: int) -> None:
    """Raise a UserError if labels without names leave out one of the classes, as those that count from 1 do."""
    lacking = sorted(set(range(num_classes)) - set(targets.tolist()))
    if lacking:
        raise UserError(
            f"train_data has no image with the label {listed(list(map(str, lacking)))}, but the data have labels up to"
            f" {num_classes - 1}; count labels from 0, or name all classes with classes=[...]"
        )


def is_name(data: Any) -> bool:
    """Whether `data` is the name of a data set."""
    return isinstance(data, str) and data in dataset_dict and data != NAME


def _folder(data: Any, argument: str) -> Optional[Path]:
    """Return the folder that `data` names; `None` for other kinds of data."""
    if not isinstance(data, (str, os.PathLike)):
        return None
    path = user_path(data)
    if not is_folder(path):
        known = did_you_mean(str(data), set(dataset_dict) - {NAME}) if isinstance(data, str) and "/" not in data else ""
        raise UserError(f"{argument} is {os.fspath(data)!r}, which is not a folder here{known}; {LAYOUT}")
    return path


def _are_one_root(train: Path, val: Path) -> bool:
    """Whether two folders are `train/` and `val/` of one data set, which its root names."""
    if train.name != TRAIN or not os.path.samefile(train.parent, val.parent):
        return False
    own = find_val(train.parent)
    return own is not None and os.path.samefile(own, val)


def read_part(data: Any, argument: str, part: str) -> Part:
    """Find the images of a folder or a `Dataset`.

    Args:
        data: the folder or the `Dataset`.
        argument: the name of the argument that gave it, for messages.
        part: `train` or `val`, the one to take of a folder that has both.

    Raises:
        UserError: there are no images, or they cannot be read.
    """
    folder = _folder(data, argument)
    if folder is None:
        split = split_of(data, argument)
        given: Any = getattr(data, "classes", None)
        named = isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given)
        return Part(split, list(given) if named else None, _side(split))
    inner = (folder / TRAIN if is_folder(folder / TRAIN) else None) if part == TRAIN else find_val(folder)
    place = inner or folder
    found = class_folders(place, LAYOUT)
    return Part(find_images(place, found), found, DEFAULT_SIZE)


def _side(split: DatasetSplit) -> Optional[int]:
    """Return the side of the first image that can be read, in pixels, or `None` if it is not square.

    Raises:
        UserError: none of the first images can be read.
    """
    faults: List[str] = []
    for index in range(min(len(split), READ_TWICE)):
        try:
            width, height = split.load(index).size
        except UnusableImage as error:
            faults.append(error.fault)
        else:
            return width if width == height else None
    raise UserError(f"none of the first {len(faults)} images can be read: {faults[0]}; correct the Dataset")


def class_names(given: Optional[Sequence[str]], *parts: Part, otherwise: Sequence[str] = ()) -> List[str]:
    """Return the names of the classes, in label order.

    Args:
        given: the class names; `None` for those of the folders or of `dataset.classes`.
        parts: the parts of the data, such as the training images and the validation images.
        otherwise: the names to use where neither `given` nor `parts` has names, if there are enough. Otherwise the
            numbers of the labels are the names.

    Raises:
        UserError: the parts have other classes, the names contradict those of the data, or a label has no name.
    """
    named = [part.classes for part in parts if part.classes is not None]
    if len(named) == 2 and named[0] != named[1]:
        if sorted(named[0]) == sorted(named[1]):
            raise UserError("train_data and val_data have the same classes in another order; give both the same order")
        check_same_classes("train_data and val_data", *named)
    count = 1 + max(int(part.split.targets.max()) for part in parts)
    if given is not None:
        names = list(given)
    else:
        names = named[0] if named else list(otherwise)
        if not named and count > len(names):
            names = [str(label) for label in range(count)]
    if isinstance(given, str) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(f"the class names are {given or names!r:.200}; expected different strings, one for each label")
    if named and names != named[0] and set(names) == set(named[0]):
        raise UserError(
            f"classes is {given!r:.200}, but the data have these names in the order {named[0]!r:.200}; leave classes"
            " out"
        )
    if count > len(names):
        raise UserError(
            f"the data have the label {count - 1}, but only {len(names)} classes are named; name all of them"
        )
    if len(names) < 2:
        raise UserError(f"the data have only one class, {names[0]!r}; expected at least two")
    return names


def side_of(cfg: CfgNode, part: Part) -> int:
    """Return the side of the images for `DATASET.INPUT_SIZE: None`, in pixels.

    Raises:
        UserError: the first image is not square.
    """
    if cfg.DATASET.INPUT_SIZE is None and part.side is None:
        size = "×".join(map(str, part.split.load(0).size))
        raise UserError(f"the first image has {size} px; give input_size, the side of the square that networks see")
    return part.side or DEFAULT_SIZE


def _splits(cfg: CfgNode, train: Part, val: Part, classes: List[str]) -> Splits:
    options = read_options(cfg, side_of(cfg, train))
    view = View(options.input_size, margin=options.augment == "resized_crop")
    images, val_images = train.split, val.split
    if options.fits_in_memory(len(images) + len(val_images)):
        images, val_images = (
            decode_all(split, view, _threads(split, options), options.corrupt, role)
            for split, role in ((images, "training"), (val_images, "validation"))
        )
    mean, std = options.statistics or _measured(images, view, options)
    info = DatasetInfo(NAME, tuple(classes), options.input_size, mean, std)
    return Splits(images, val_images, info, options=options)


def _threads(split: ImageSplit, options: Options) -> int:
    return 1 if isinstance(split, DatasetSplit) else options.num_workers  # a user's Dataset may not allow threads


def _measured(train: ImageSplit, view: View, options: Options) -> Tuple[Channels, Channels]:
    mean, std, number = measure_sample(train, view, _threads(train, options), options.corrupt)
    log.info("measured over %d training images: mean %s, std %s", number, list(mean), list(std))
    return mean, std
