"""What a data set's function returns, and the registry of these functions."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterator, List, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from ...errors import UserError
from ...registry import Registry
from ..folders.file_names import picture_formats
from ..info import DatasetInfo
from .epoch_plan import mix
from .orientation import upright
from .stats import stamp

# what Pillow warns of, and reads nevertheless, is refused below
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
MAX_PIXELS = 89_478_485  # Pillow's limit, 268 MB as RGB
MAX_ASPECT_RATIO = 100  # sides that differ more: resizing the shorter one would take gigabytes

Labels = Union[Sequence[int], Tensor]
Look = Callable[[Image.Image], Image.Image]  # from an opened picture, of any kind and not decoded yet, to an RGB one


class UnusableImage(UserError):
    """A picture that cannot be used; `fault` is its file and the reason in brackets."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"cannot read the image {fault}; replace, convert or remove it")
        self.fault = fault


class ArraySplit:
    """Images that are in memory already.

    Args:
        images: uint8 [N, H, W, 3].
        targets: labels, N of them.
    """

    def __init__(self, images: np.ndarray, targets: Labels) -> None:
        assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, (images.dtype, images.shape)
        assert len(images) == len(targets), (len(images), len(targets))
        self.images = images
        self.targets = torch.as_tensor(targets, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, look: Look = upright) -> Image.Image:
        """Return what `look` makes of image `index` (RGB)."""
        return look(Image.fromarray(self.images[index]))

    def digest(self) -> str:
        """Return a fingerprint of the pixels, hexadecimal."""
        return hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()

    def fingerprint(self) -> Tuple[str, str]:
        """Return what is compared, and its digest; see `Loader.fingerprint`."""
        return "stored pixels", self.digest()

    def subset(self, indices: Tensor) -> ArraySplit:
        """Return the images `indices` (int64 [n]) only, numbered from 0."""
        return ArraySplit(self.images[indices.numpy()], self.targets[indices])


class FileSplit:
    """Images that are read from files when asked for.

    The names are one array: a list of a million of them is half a gigabyte, of which every worker process would come to
    hold a copy, since counting references to its entries writes to their pages.

    Args:
        files: one path an image.
        targets: labels, as many.
    """

    def __init__(self, files: Union[Sequence[Union[str, Path]], np.ndarray], targets: Labels) -> None:
        assert len(files) == len(targets), (len(files), len(targets))
        self._files = files if isinstance(files, np.ndarray) else np.array([os.fsencode(file) for file in files])
        self.targets = torch.as_tensor(targets, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> List[Path]:
        return list(self.paths())

    def paths(self) -> Iterator[Path]:
        """Yield the files one by one: a million of these objects are a gigabyte."""
        return map(self.path, range(len(self)))

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self._files[index]))

    def load(self, index: int, look: Look = upright) -> Image.Image:
        """Return what `look` makes of image `index` (RGB).

        Raises:
            UnusableImage: the file is not an 8-bit picture of a sensible size that can be decoded.
        """
        path = self.path(index)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # the end of a pipe may never come
                raise OSError("not a regular file")
            with Image.open(path, formats=picture_formats()) as image:
                _check(image)
                return look(image)
        except MemoryError:  # not the picture's fault
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            name = "".join(c if c.isprintable() else "?" for c in str(path))  # it may be no text in any encoding
            raise UnusableImage(f"{name} ({reason})") from error

    def digest(self) -> str:
        """Return a fingerprint of the files' names (with their folders'), sizes and dates, hexadecimal."""
        state = hashlib.sha256(b"upright\n")  # other pixels than when EXIF orientations were not heeded
        for path in self.paths():
            state.update(os.fsencode(f"{path.parent.name}/{path.name} {stamp(path)}\n"))
        return state.hexdigest()

    def fingerprint(self) -> Tuple[str, str]:
        """Return what is compared, and its digest; see `Loader.fingerprint`."""
        state, separator = hashlib.sha256(), os.fsencode(os.sep)
        for file in self._files.tolist():
            try:
                size = os.stat(file).st_size
            except OSError:  # reading it says what is wrong
                size = -1
            state.update(b"%s %d\0" % (file.rpartition(separator)[2], size))
        return "file names and sizes", state.hexdigest()

    def subset(self, indices: Tensor) -> FileSplit:
        """Return the images `indices` (int64 [n]) only, numbered from 0."""
        return FileSplit(self._files[indices.numpy()], self.targets[indices])


def _check(image: Image.Image) -> None:
    width, height = image.size
    if image.mode[0] in "IF":  # 16 and 32 bits a channel: conversion to RGB would clip, not scale
        raise TypeError(f"more than 8 bits a channel, mode {image.mode}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} px, more than {MAX_PIXELS} pixels")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"{width}×{height} px, one side more than {MAX_ASPECT_RATIO} times the other")


ImageSplit = Union[ArraySplit, FileSplit]


class Splits:
    """A data set: the whole training set, the validation set, and what is known of both.

    Args:
        train: the training set, or a function that finds it once it is asked for; evaluation does not.
        val: the validation set.
        info: classes, size and statistics.
        val_fraction: which part of the data set's training images became `val`; 0 if it has a validation set.
    """

    def __init__(
        self,
        train: Union[ImageSplit, Callable[[], ImageSplit]],
        val: ImageSplit,
        info: DatasetInfo,
        val_fraction: float = 0.0,
    ) -> None:
        self._train = train
        self.val = val
        self.info = info
        self.val_fraction = val_fraction

    @cached_property
    def train(self) -> ImageSplit:
        return self._train() if callable(self._train) else self._train


dataset_dict: Registry[Callable[[CfgNode], Splits]] = Registry("data set")


def balanced_part(targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Return the sorted indices (int64 [n]) of a class-balanced part of a training set.

    Of each class with `n_c` images `max(1, round(fraction · n_c))` are taken, at random by `seed`. With one seed, the
    part of a smaller fraction lies in that of a larger one.

    Args:
        targets: labels, int64 [N].
        fraction: in (0, 1].
        seed: of the choice.
    """
    parts = []
    for label in targets.unique().tolist():
        members = (targets == label).nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(mix("part", seed, label))
        count = max(1, round(fraction * len(members)))
        parts.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(parts).sort().values
