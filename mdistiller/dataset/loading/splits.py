"""Splits of a data set in memory or as files, and the registry of data sets."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterator, Optional, Protocol, Sequence, Tuple, Union
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from ...registry import Registry
from ..augment.epoch_plan import derive_seed
from ..images.orientation import upright
from ..info import DatasetInfo
from ..options import Options
from .encoded import EncodedSplit, Transform, as_names

Labels = Union[Sequence[int], Tensor]


class ArraySplit:
    """Images in memory.

    Args:
        images: the images, uint8 [N, H, W, 3].
        targets: the N labels.
    """

    def __init__(self, images: np.ndarray, targets: Labels) -> None:
        assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, (images.dtype, images.shape)
        assert len(images) == len(targets), (len(images), len(targets))
        self.images = images
        self.targets = torch.as_tensor(targets, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, transform: Transform = upright) -> Image.Image:
        """Return `transform` of image `index`, RGB."""
        return transform(Image.fromarray(self.images[index]))

    def digest(self) -> str:
        """Return a hexadecimal digest of the pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()

    def fingerprint(self) -> Tuple[str, str]:
        """Return a kind and a digest of that kind; see `Loader.fingerprint`."""
        return "stored pixels", self.digest()

    def subset(self, indices: Tensor) -> ArraySplit:
        """Return a split of the images `indices` (int64 [n])."""
        return ArraySplit(self.images[indices.numpy()], self.targets[indices])


class FileSplit(EncodedSplit):
    """Images that are read from files on access.

    Args:
        files: the N paths of the images.
        targets: the N labels.
    """

    def __init__(self, files: Union[Sequence[Union[str, Path]], np.ndarray], targets: Labels) -> None:
        assert len(files) == len(targets), (len(files), len(targets))
        self._files = as_names(files)
        self.targets = torch.as_tensor(targets, dtype=torch.int64)

    def paths(self) -> Iterator[Path]:
        """Yield the files one by one; a million Path objects take a gigabyte."""
        return map(self.path, range(len(self)))

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self._files[index]))

    @cached_property
    def stats(self) -> np.ndarray:  # read from the disk only once
        return np.array([stat_of(file) for file in self._files.tolist()], dtype=np.int64).reshape(-1, 2)

    def open(self, index: int) -> Path:
        path = self.path(index)
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe may never end
            raise OSError("not a regular file")
        return path

    def fingerprint(self) -> Tuple[str, str]:
        state, separator = hashlib.sha256(), os.fsencode(os.sep)
        for file, size in zip(self._files.tolist(), self.stats[:, 0].tolist()):
            state.update(b"%s %d\0" % (file.rpartition(separator)[2], size))
        return "file names and sizes", state.hexdigest()

    def subset(self, indices: Tensor) -> FileSplit:
        part = FileSplit(self._files[indices.numpy()], self.targets[indices])
        if "stats" in self.__dict__:  # already read
            part.stats = self.stats[indices.numpy()]
        return part


def stat_of(file: bytes) -> Tuple[int, int]:
    """Return the size in bytes and the modification time in ns of a file, or −1 for both if it cannot be read."""
    try:
        found = os.stat(file)
    except OSError:  # reading the file reports the error
        return -1, -1
    return found.st_size, found.st_mtime_ns


class ImageSplit(Protocol):
    """Images with labels; what loaders need of a split. `load`, `digest` and the others are described above."""

    targets: Tensor

    def __len__(self) -> int: ...

    def load(self, index: int, transform: Transform = upright) -> Image.Image: ...

    def digest(self) -> str: ...

    def fingerprint(self) -> Tuple[str, str]: ...

    def subset(self, indices: Tensor) -> ImageSplit: ...


class Splits:
    """A data set: training set, validation set, and their description.

    Args:
        train: the training set, or a function that finds it on first access.
        val: the validation set.
        info: the description of the data set: classes, size and statistics.
        val_fraction: the fraction of the training images that became `val`; 0 if the data set has a validation set.
        options: the validated options, if the data set has read them; otherwise the caller reads them.
    """

    def __init__(
        self,
        train: Union[ImageSplit, Callable[[], ImageSplit]],
        val: ImageSplit,
        info: DatasetInfo,
        val_fraction: float = 0.0,
        options: Optional[Options] = None,
    ) -> None:
        self._train = train
        self.val = val
        self.info = info
        self.val_fraction = val_fraction
        self.options = options

    @cached_property
    def train(self) -> ImageSplit:
        return self._train() if callable(self._train) else self._train


Make = Callable[[CfgNode], Splits]
dataset_dict: Registry[Make] = Registry("data set")
_of_any_size: WeakSet[Make] = WeakSet()


def of_any_size(make: Make) -> Make:
    """Mark the function of a data set whose images have no common size, such as a folder of photos."""
    _of_any_size.add(make)
    return make


def is_of_any_size(make: Make) -> bool:
    """Return whether the images of a data set have no common size, so that the networks determine it."""
    return make in _of_any_size


def balanced_part(targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Return the sorted indices (int64 [n]) of a class-balanced random subset of a training set.

    From each class with `n_c` images, `max(1, round(fraction · n_c))` are chosen. With the same seed, a smaller
    fraction gives a subset of a larger one.

    Args:
        targets: the labels, int64 [N].
        fraction: the fraction of the training set to choose, in (0, 1].
        seed: the seed of the choice.
    """
    labels, counts = targets.unique(return_counts=True)
    members_of_class = targets.argsort(stable=True).split(counts.tolist())
    parts = []
    for label, members in zip(labels.tolist(), members_of_class):
        generator = torch.Generator().manual_seed(derive_seed("part", seed, label))
        count = max(1, round(fraction * len(members)))
        parts.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(parts).sort().values
