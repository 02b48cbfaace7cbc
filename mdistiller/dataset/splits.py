"""What a data set's function returns, and the registry of these functions."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, List, NamedTuple, Sequence, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from ..errors import UserError
from ..registry import Registry
from .draws import mix
from .info import DatasetInfo

Labels = Union[Sequence[int], Tensor]


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

    def load(self, index: int) -> Image.Image:
        """Return image `index` (RGB)."""
        return Image.fromarray(self.images[index])

    def subset(self, indices: Tensor) -> ArraySplit:
        """Return the images `indices` (int64 [n]) only, numbered from 0."""
        return ArraySplit(self.images[indices.numpy()], self.targets[indices])


class FileSplit:
    """Images that are read from files when asked for.

    Args:
        files: one path an image.
        targets: labels, as many.
    """

    def __init__(self, files: Sequence[Path], targets: Labels) -> None:
        assert len(files) == len(targets), (len(files), len(targets))
        self.files: List[Path] = list(files)
        self.targets = torch.as_tensor(targets, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Image.Image:
        """Return image `index`, converted to RGB.

        Raises:
            UserError: the file is not an 8-bit picture that can be decoded; its name is given.
        """
        path = self.files[index]
        try:
            with Image.open(path) as image:
                if image.mode[0] in "IF":  # 16 and 32 bits a channel: conversion to RGB would clip, not scale
                    raise TypeError(f"more than 8 bits a channel, mode {image.mode}")
                return image.convert("RGB")
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot read the image {path} ({reason}); replace, convert or remove it") from error

    def subset(self, indices: Tensor) -> FileSplit:
        """Return the images `indices` (int64 [n]) only, numbered from 0."""
        return FileSplit([self.files[i] for i in indices.tolist()], self.targets[indices])


ImageSplit = Union[ArraySplit, FileSplit]


class Splits(NamedTuple):
    """A data set: the whole training set, the validation set, and what is known of both."""

    train: ImageSplit
    val: ImageSplit
    info: DatasetInfo


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
