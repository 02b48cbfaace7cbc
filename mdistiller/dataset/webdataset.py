"""Shards: tar files in the format of the `webdataset` library, with an index."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from yacs.config import CfgNode

from .. import paths
from ..errors import UserError
from .folders.class_folders import is_folder
from .folders.layout import TRAIN, VAL, check_val_fraction, hold_out
from .imagefolder import own_images
from .loading.splits import Splits, dataset_dict, of_any_size
from .options import DEFAULT_SIZE, Options, read_options
from .shards.index import INDEX, Shard, read_index
from .shards.split import ShardSplit, check_shards

LAYOUT = f"expected a folder of shards with an {INDEX}, as tools/make_shards.py writes it"


@dataset_dict.register("webdataset")
@of_any_size
def webdataset(cfg: CfgNode) -> Splits:
    """Find the images in the shards of the folder `DATASET.ROOT`.

    The index gives the place of each image, so the images are distributed among processes, shuffled and resumed like
    files. The library `webdataset` writes shards (see `shards/write.py`), but reading them needs no library. Its own
    reading is sequential: it would shuffle within a window only, and could not resume within an epoch.

    Checksums are compared once, until a shard changes. Statistics are measured as for `imagefolder`.

    Raises:
        UserError: the folder, its index or a shard is missing or damaged.
    """
    options = read_options(cfg, own_size=DEFAULT_SIZE)
    root = local_root(cfg.DATASET.ROOT, LAYOUT)
    if not is_folder(root):
        raise UserError(f"DATASET.ROOT {root} is not a folder; {LAYOUT}")
    classes, shards = read_index(root)
    fraction, train, val = options.val_fraction, shards[TRAIN], shards[VAL]
    check_val_fraction(fraction, bool(val), root / INDEX)
    if fraction > 0:
        both = hold_out(_read(root, train, TRAIN, options), root, classes, fraction)
        return own_images(cfg, options, classes, root, lambda: both[0], lambda: both[1])
    find_train, find_val = partial(_read, root, train, TRAIN, options), partial(_read, root, val, VAL, options)
    return own_images(cfg, options, classes, root, find_train, find_val)


def _read(root: Path, shards: list[Shard], part: str, options: Options) -> ShardSplit:
    if not shards:
        raise UserError(f"{root / INDEX} has no {part} shards; {LAYOUT}")
    check_shards(root, shards, options.corrupt, options.num_workers)
    return ShardSplit.of(root, shards)


def local_root(root: str, layout: str) -> Path:
    """Return the path of `DATASET.ROOT`.

    Raises:
        UserError: it is not set, or is a URL.
    """
    if not root:
        raise UserError(f"DATASET.ROOT is not set; {layout}")
    if "://" in root or root.startswith("pipe:"):
        raise UserError(f"DATASET.ROOT {root} is a URL; copy the data to a local disk and give their folder")
    return paths.find_file(root)
