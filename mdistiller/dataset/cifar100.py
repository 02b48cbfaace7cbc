"""CIFAR-100: 50,000 training and 10,000 test images of 32×32 px in 100 classes (Krizhevsky, 2009)."""

from __future__ import annotations

import contextlib
import io
import socket
from typing import Iterator

from torchvision import datasets
from yacs.config import CfgNode

from .. import paths
from ..errors import UserError
from .info import DatasetInfo
from .options import read_options
from .splits import ArraySplit, Splits, dataset_dict

MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
TIMEOUT = 30  # seconds without an answer from the server


@dataset_dict.register("cifar100")
def cifar100(cfg: CfgNode) -> Splits:
    """Read `<DATASET.ROOT>/cifar-100-python/`, downloading it if it is not there; torchvision checks its MD5 sums.

    Raises:
        UserError: it is not there and cannot be downloaded, or is damaged.
    """
    options = read_options(cfg, own_size=32)
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else paths.data_root()
    try:
        with _quiet():
            train = datasets.CIFAR100(str(root), train=True, download=True)
            val = datasets.CIFAR100(str(root), train=False, download=True)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"CIFAR-100 is not (whole) in {root} and could not be downloaded ({reason});"
            " get cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
            f" and unpack it there, to {root / 'cifar-100-python'}/"
        ) from error
    mean, std = options.statistics or (MEAN, STD)
    info = DatasetInfo("cifar100", tuple(train.classes), options.input_size, mean, std)
    return Splits(ArraySplit(train.data, train.targets), ArraySplit(val.data, val.targets), info)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torchvision prints, and end a download that stalls."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
