"""Data sets and their loaders.

To add a data set, write a file with a function `(cfg) -> Splits` and register it in `dataset_dict`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Tuple, Union

import torch
from yacs.config import CfgNode

from .. import distributed
from ..errors import UserError
from . import (  # noqa: F401 (they register)
    cifar10,
    cifar100,
    fashion_demo,
    given,
    huggingface,
    imagefolder,
    imagenet,
    tiny_imagenet,
    webdataset,
)
from .augment.epoch_plan import EpochPlan
from .folders.layout import VAL
from .folders.unlabeled import find_unlabeled
from .images.decode import View
from .info import DatasetInfo
from .loading.device_loader import DeviceLoader
from .loading.image_check import check_images
from .loading.in_memory import decode_all
from .loading.loader import Batch, Loader
from .loading.splits import ArraySplit, FileSplit, ImageSplit, Splits, balanced_part, dataset_dict
from .loading.stream_loader import StreamLoader
from .named_split import named_split
from .options import Options, read_options

__all__ = [
    "VAL",
    "ArraySplit",
    "Batch",
    "DatasetInfo",
    "DeviceLoader",
    "EpochPlan",
    "FileSplit",
    "Loader",
    "Splits",
    "StreamLoader",
    "dataset_dict",
    "get_dataset",
    "get_val_loader",
]

Device = Union[str, torch.device, None]


def get_dataset(cfg: CfgNode, device: Device = None) -> Tuple[Loader, Loader, int, int]:
    """Return `(train_loader, val_loader, num_data, num_classes)` of the data set `cfg.DATASET.TYPE`.

    Args:
        cfg: the configuration, of which `DATASET.*`, `SOLVER.BATCH_SIZE` and `EXPERIMENT.SEED` are read.
        device: the device of the batches; by default CUDA if available, otherwise the CPU.

    Returns:
        The two loaders, the number of training images after `DATASET.TRAIN_FRACTION` and `DATASET.CORRUPT skip`, and
        the number of classes. See `Loader` for the content of a batch.

    Raises:
        UserError: a name is unknown, a value is out of range, or data are missing, damaged or in another layout.
    """
    splits, options = _read(cfg)
    with distributed.local_main_first():
        train = splits.train  # may read them
    if options.train_fraction < 1:
        train = train.subset(balanced_part(train.targets, options.train_fraction, options.fraction_seed))
    unlabeled = find_unlabeled(options.unlabeled, splits.val) if options.unlabeled else None
    in_memory = options.fits_in_memory(len(train) + len(splits.val) + (0 if unlabeled is None else len(unlabeled)))
    train_loader = _loader(train, splits.info, options, device, in_memory, train=True)
    if unlabeled is not None:
        train_loader.unlabeled = _unlabeled_loader(
            unlabeled, splits.info, options.of_unlabeled(), device, in_memory, len(train_loader)
        )
    val_loader = _loader(splits.val, splits.info, options, device, in_memory, train=False)
    return train_loader, val_loader, train_loader.num_images, splits.info.num_classes


def get_val_loader(cfg: CfgNode, device: Device = None, split: str = VAL) -> Loader:
    """Return only the validation loader of `get_dataset`.

    Training images are read only if mean and standard deviation have to be measured.

    Args:
        cfg, device: see `get_dataset`.
        split: the images to load: `val`, or the name of another folder beside `train/` and `val/` of an image folder,
            such as `test`.
    """
    splits, options = _read(cfg, split)
    if options.corrupt == "refuse":  # evaluation decodes each image anyway
        options = replace(options, corrupt="unchecked")
    return _loader(splits.val, splits.info, options, device, options.fits_in_memory(len(splits.val)), train=False)


def _read(cfg: CfgNode, split: str = VAL) -> Tuple[Splits, Options]:
    with distributed.local_main_first():
        splits = dataset_dict[cfg.DATASET.TYPE](cfg) if split == VAL else named_split(cfg, split)
    options = splits.options or read_options(cfg, splits.info.input_size)
    if options.val_fraction != splits.val_fraction:
        raise UserError(
            f"DATASET.VAL_FRACTION is {options.val_fraction:g}, but {cfg.DATASET.TYPE} has its own validation images;"
            " set DATASET.VAL_FRACTION 0"
        )
    return splits, options


def _unlabeled_loader(
    split: ImageSplit, info: DatasetInfo, options: Options, device: Device, in_memory: bool, num_steps: int
) -> Loader:
    processes = distributed.get_world_size()
    if len(split) < 2 * processes:
        raise UserError(f"DATASET.UNLABELED holds {len(split)} images; expected at least 2 for each process")
    if options.batch_size < processes:
        raise UserError(
            f"DATASET.UNLABELED_RATIO {options.unlabeled_ratio:g} gives {options.batch_size} images without labels a"
            f" batch for {processes} processes; expected at least one for each"
        )
    loader = _loader(split, info, options, device, in_memory, train=True, role="unlabeled")
    loader.set_num_steps(num_steps)
    return loader


def _loader(
    split: ImageSplit,
    info: DatasetInfo,
    options: Options,
    device: Device,
    in_memory: bool,
    train: bool,
    role: str = "",
) -> Loader:
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    view = View(info.input_size, margin=options.augment == "resized_crop")
    role = role or ("training" if train else "validation")
    with distributed.local_main_first():  # all processes enter it, because machines may differ in `in_memory`
        if not in_memory:
            split = check_images(split, options.corrupt, options.num_workers, role)
    if in_memory:
        decoded = decode_all(split, view, options.num_workers, options.corrupt, role)
        return DeviceLoader(decoded, info, options, place, train)
    return StreamLoader(split, view, info, options, place, train)
