"""CIFAR-10 and CIFAR-100: download, and reading by torchvision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Type

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from yacs.config import CfgNode

from .. import paths
from ..download import download, one_at_a_time, unpack
from ..errors import UserError
from .info import DatasetInfo
from .loading.splits import ArraySplit, Splits
from .options import Channels, read_options

SIZE = 32  # px
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def cifar(cfg: CfgNode, published: Type[CIFAR10], title: str, mean: Channels, std: Channels) -> Splits:
    """Read CIFAR from `DATASET.ROOT`, by default the data folder; download the files if they are missing.

    The files are pickles. torchvision verifies their MD5 sums before it opens them.

    Args:
        cfg: the configuration.
        published: torchvision's class, which has the names and sums of the files.
        title: name of the data set, for messages.
        mean, std: statistics if the configuration gives none.

    Raises:
        UserError: the files are damaged, or missing and cannot be downloaded.
    """
    options = read_options(cfg, own_size=SIZE)
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else paths.data_root()
    folder = root / published.base_folder
    names = [name for name, _ in (*published.train_list, *published.test_list)] + [published.meta["filename"]]
    if not all((folder / name).is_file() for name in names):
        _download(published, title, root)
    test = _read(published, title, root, train=False)  # verifies all files
    mean, std = options.statistics or (mean, std)
    info = DatasetInfo(published.__name__.lower(), tuple(test.classes), options.input_size, mean, std, root)
    verified: Type[CIFAR10] = type("Verified", (_Verified, published), {})
    return Splits(lambda: _split(_read(verified, title, root, train=True)), _split(test), info, options=options)


class _Verified:
    """Makes torchvision skip the MD5 sums of files that it has just verified."""

    def _check_integrity(self) -> bool:
        return True


def _download(published: Type[CIFAR10], title: str, root: Path) -> None:
    archive = root / published.filename
    try:
        with one_at_a_time(archive):  # several runs may start on a new machine
            if not archive.is_file():
                download(published.url, archive)
            if not check_integrity(str(archive), published.tgz_md5):
                raise UserError(f"{archive} is damaged, remove it: its MD5 sum is not {published.tgz_md5}")
            unpack(archive, root)
    except (UserError, OSError) as error:
        reason = str(error).split(";")[0]
        raise UserError(
            f"{title} is incomplete in {root}: {reason}; download {archive.name} from {PAGE} and unpack it in {root}"
        ) from None


def _read(published: Type[CIFAR10], title: str, root: Path, train: bool) -> CIFAR10:
    try:
        with warnings.catch_warnings():
            # NumPy 2.4 warns about the format of NumPy arrays from 2009
            warnings.filterwarnings("ignore", r"dtype\(\): align should be passed")
            return published(str(root), train=train)
    except (RuntimeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "an MD5 sum is not the published one"
        folder = root / published.base_folder
        raise UserError(
            f"the files of {title} in {folder} are damaged or cannot be read ({reason}); remove this folder and"
            " run again to unpack or download them"
        ) from None


def _split(data: CIFAR10) -> ArraySplit:
    return ArraySplit(np.ascontiguousarray(data.data), data.targets)
