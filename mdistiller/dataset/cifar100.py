"""CIFAR-100: 50,000 training and 10,000 test images of 32×32 px in 100 classes (Krizhevsky, 2009)."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
from yacs.config import CfgNode

from .. import paths
from ..download import download, unpack
from ..errors import UserError
from .info import DatasetInfo
from .options import read_options
from .splits import ArraySplit, Splits, dataset_dict

FOLDER = "cifar-100-python"
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MD5 = {
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
SIZE = 32  # px
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


@dataset_dict.register("cifar100")
def cifar100(cfg: CfgNode) -> Splits:
    """Read `<DATASET.ROOT>/cifar-100-python/`, downloading it if it is not there.

    The files are compared with their published MD5 sums. They are pickles, read by a reader that knows arrays, texts,
    numbers, lists and dictionaries, and runs nothing.

    Raises:
        UserError: it is not there and cannot be downloaded, or is damaged.
    """
    options = read_options(cfg, own_size=SIZE)
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else paths.data_root()
    folder = root / FOLDER
    if not all((folder / name).is_file() for name in ("train", "test", "meta")):
        _download(root)
    classes = _classes(folder / "meta")
    mean, std = options.statistics or (MEAN, STD)
    info = DatasetInfo("cifar100", classes, options.input_size, mean, std, root)
    return Splits(_images(folder / "train", len(classes)), _images(folder / "test", len(classes)), info)


def _download(root: Path) -> None:
    archive = root / "cifar-100-python.tar.gz"
    try:
        if not archive.is_file():
            download(URL, archive)
        _check_sum(archive)
        unpack(archive, root)
    except UserError as error:
        reason = str(error).split(";")[0]
        raise UserError(
            f"CIFAR-100 is not (whole) in {root} and could not be downloaded ({reason}); get cifar-100-python.tar.gz"
            f" from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it there, to {root / FOLDER}/"
        ) from None


def _check_sum(path: Path) -> bytes:
    """Return the content of a file that is what was published."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); get CIFAR-100 again") from None
    found = hashlib.md5(content).hexdigest()
    if found != MD5[path.name]:
        raise UserError(
            f"{path} is damaged or not CIFAR-100's (MD5 {found}, expected {MD5[path.name]}); remove it, and it is"
            " downloaded again"
        )
    return content


def _images(path: Path, num_classes: int) -> ArraySplit:
    """Read one of the two splits; labels that do not fit are counted."""
    content = read_pickle(path)
    data, labels = content.get("data"), content.get("fine_labels")
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3 * SIZE * SIZE,)):
        raise UserError(f"{path} holds no rows of {3 * SIZE * SIZE} bytes below 'data'; get CIFAR-100 again")
    if not isinstance(labels, list) or len(labels) != len(data):
        count = len(labels) if isinstance(labels, list) else "no list of"
        raise UserError(f"{path} holds {len(data)} images and {count} labels ('fine_labels'); get CIFAR-100 again")
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < num_classes]
    if wrong:
        raise UserError(
            f"{path} holds {len(wrong)} of {len(labels)} labels, first {wrong[0]!r}, that are not of the {num_classes}"
            " classes in 'meta', numbered from 0; get CIFAR-100 again"
        )
    return ArraySplit(np.ascontiguousarray(data.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)), labels)


def _classes(path: Path) -> Tuple[str, ...]:
    names = read_pickle(path).get("fine_label_names")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path} holds no names of classes ('fine_label_names'); get CIFAR-100 again")
    return tuple(names)


class _Arrays(pickle.Unpickler):
    """Knows what arrays are made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("numpy", "ndarray"):
            return object  # only named, as what `_empty_array` is to make
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


def _empty_array(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """What NumPy's own function does in a pickle: an array that is then given shape, type and bytes."""
    return np.ndarray.__new__(np.ndarray, (0,), "u1")


def read_pickle(path: Path) -> Dict[str, Any]:
    """Return the dictionary in a pickle of arrays and plain values, written by Python 2 or 3; nothing in it is run.

    Raises:
        UserError: the file is not what was published, wants to run something, or is damaged.
    """
    published = _check_sum(path)
    try:
        content = _Arrays(io.BytesIO(published), encoding="latin1").load()
    except Exception as error:  # damaged bytes can make the reader raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path} refused, it is not a pickle of arrays and plain values ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a dictionary")
    return content
