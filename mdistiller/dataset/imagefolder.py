"""Your own images: `train/<class>/*` and `val/<class>/*` below one folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Callable, Sequence, Tuple, Union

from yacs.config import CfgNode

from .. import paths
from ..errors import UserError
from .folders.class_folders import entries, is_folder
from .folders.layout import TRAIN, find_parts
from .images.decode import View
from .images.stats import FolderCache, measure
from .info import DatasetInfo
from .loading import statistics
from .loading.encoded import EncodedSplit
from .loading.in_memory import decode_all
from .loading.splits import ImageSplit, Splits, dataset_dict, of_any_size
from .options import DEFAULT_SIZE, Channels, Options, read_options

log = logging.getLogger("mdistiller")

Find = Callable[[], EncodedSplit]

LAYOUT = "expected <DATASET.ROOT>/train/<class>/<image> and <DATASET.ROOT>/val/<class>/<image>"


@dataset_dict.register("imagefolder")
@of_any_size
def imagefolder(cfg: CfgNode) -> Splits:
    """Find the images below `DATASET.ROOT`. A class is a folder or a link to one; labels follow the sorted names.

    The validation folder may also be called `valid` or `validation`. If there is none, `DATASET.VAL_FRACTION` of the
    training images are held out for validation.

    If mean and std are not given, they are measured over the un-augmented training images: all of them if the set fits
    in memory, otherwise a random 10,000. They are cached until a file changes.

    Raises:
        UserError: the folder has another layout or cannot be read.
    """
    options = read_options(cfg, own_size=DEFAULT_SIZE)
    if not cfg.DATASET.ROOT:
        raise UserError(f"DATASET.ROOT is not set; {LAYOUT}")
    root = paths.find_file(cfg.DATASET.ROOT)
    if not is_folder(root) or not entries(root):
        raise UserError(f"DATASET.ROOT {root} is {'empty' if is_folder(root) else 'not a folder'}; {LAYOUT}")
    classes, find_train, find_val = find_parts(root, options.val_fraction, LAYOUT)
    return own_images(cfg, options, classes, root, find_train, find_val)


def own_images(
    cfg: CfgNode, options: Options, classes: Sequence[str], root: Path, find_train: Find, find_val: Find
) -> Splits:
    """Return the splits of a set of the user's own images, after measuring their statistics if these are not given.

    Args:
        cfg, options: the configuration, and the validated options of the data set.
        classes: the class names, in label order.
        root: the folder of the data set.
        find_train, find_val: functions that find the images. Evaluation does not need those for training if statistics
            are given.
    """
    if cfg.DATASET.INPUT_SIZE is None:
        log.info("DATASET.INPUT_SIZE is not set: images are resized to %d px", options.input_size)
    train: Union[ImageSplit, Callable[[], ImageSplit]]
    if options.statistics is not None:
        train, (mean, std) = find_train, options.statistics
        val = find_val()
    else:
        images = find_train()
        val = find_val()
        train, mean, std = _with_statistics(images, root / TRAIN, options, len(images) + len(val))
    info = DatasetInfo(cfg.DATASET.TYPE, tuple(classes), options.input_size, mean, std, root)
    return Splits(train, val, info, options.val_fraction, options)


def _with_statistics(
    train: EncodedSplit, folder: Path, options: Options, num_images: int
) -> Tuple[ImageSplit, Channels, Channels]:
    """Return the training set, decoded if measuring has decoded it, and its mean and std."""
    view = View(options.input_size, margin=options.augment == "resized_crop")
    everything = options.fits_in_memory(num_images) or len(train) <= statistics.SAMPLE
    settings = f"{view}, upright, {'all images' if everything else f'{statistics.SAMPLE} images'}"
    cache = FolderCache(folder, settings, train.stamped_paths())
    known = cache.load_statistics()
    if known is not None:
        return (train, *known)
    split: ImageSplit = train
    if options.fits_in_memory(num_images):
        decoded = decode_all(train, view, options.num_workers, options.corrupt, "training")
        mean, std = measure([decoded.images])
        number = len(decoded)
        # TRAIN_FRACTION is drawn from the whole set, so that it does not depend on the cache
        if options.train_fraction == 1 or len(decoded) == len(train):
            split = decoded
    else:
        mean, std, number = statistics.measure_sample(train, view, options.num_workers, options.corrupt)
    cache.save(mean=mean, std=std)
    log.info("measured over %s training images: DATASET.MEAN %s DATASET.STD %s", number, list(mean), list(std))
    return split, mean, std
