"""A split of a PyTorch `Dataset` of (image, label)."""

from __future__ import annotations

import hashlib
from typing import Any, List, Optional, Tuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset
from tqdm import tqdm

from ...errors import UserError, one_line
from ..images.orientation import upright
from ..images.pictures import as_picture
from .encoded import Transform, UnusableImage

READ_TWICE = 8  # first images, to find random transforms
SAMPLED = 64  # images that are read to identify a set, and to compare its labels


class DatasetSplit:
    """Images that are read from a `Dataset` on access.

    Args:
        dataset: the data set. `dataset[i]` returns `(image, label)`, always the same; see `as_picture` for images.
        targets: the N labels.
        indices: the indices of the images in `dataset`, int64 [N].
    """

    def __init__(self, dataset: Any, targets: Tensor, indices: Tensor) -> None:
        self.dataset = dataset
        self.targets = targets
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int, transform: Transform = upright) -> Image.Image:
        """Return `transform` of image `index`, RGB.

        Raises:
            UnusableImage: the data set raises an error, or returns something other than an image.
        """
        place = int(self._indices[index])
        try:
            return transform(as_picture(self.dataset[place][0], f"image {place} of the data set"))
        except MemoryError:  # not caused by the image
            raise
        except Exception as error:
            reason = one_line(error)
            raise UnusableImage(f"{place} of the {type(self.dataset).__name__} ({reason})") from error

    def digest(self) -> str:
        """Return a hexadecimal digest of the pixels of all images, which are read."""
        return self._digest(range(len(self)))

    def fingerprint(self) -> Tuple[str, str]:
        """Return a kind and a digest of that kind; see `Loader.fingerprint`."""
        step = max(1, len(self) // SAMPLED)
        return "sampled pixels", self._digest(range(0, len(self), step))

    def _digest(self, indices: range) -> str:
        state = hashlib.sha256(b"%d" % len(self))
        for index in indices:
            state.update(np.asarray(self.load(index)).tobytes())
        return state.hexdigest()

    def subset(self, indices: Tensor) -> DatasetSplit:
        """Return a split of the images `indices` (int64 [n])."""
        return DatasetSplit(self.dataset, self.targets[indices], self._indices[indices])


def split_of(dataset: Any, role: str) -> DatasetSplit:
    """Return the split of a PyTorch `Dataset`.

    Its labels are those of `dataset.targets`, if the items of some images have them; otherwise each item is read.

    Args:
        dataset: the data set, `len(dataset)` images with labels.
        role: the name of the data set, such as `train_data`, given in error messages.

    Raises:
        UserError: it is not such a data set, has other items than `(image, label)`, or changes its images at random.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, (DataLoader, IterableDataset)) or not all(
        hasattr(dataset, name) for name in ("__len__", "__getitem__")
    ):
        raise UserError(f"{role} is a {kind}; expected a folder, the name of a data set, or a Dataset with a length")
    if len(dataset) == 0:
        raise UserError(f"{role} is empty; expected at least one image")
    found = _known_targets(dataset)
    if found is None or len(found) != len(dataset) or not _are_returned(found, dataset, role):
        indices = tqdm(range(len(dataset)), desc=f"reading the labels of {role}", delay=2, disable=None, leave=False)
        found = [_label(dataset, index, role) for index in indices]
    if min(found) < 0:
        raise UserError(f"{role} has the label {min(found)} for image {found.index(min(found))}; labels count from 0")
    split = DatasetSplit(dataset, torch.tensor(found), torch.arange(len(found)))
    _check_constant(split, role)
    return split


def _are_returned(targets: List[int], dataset: Any, role: str) -> bool:
    """Whether the items of a data set have the labels `targets`, by images of different classes and some others."""
    of_classes = list({label: index for index, label in enumerate(targets)}.values())
    for indices in (of_classes, range(len(targets))):
        for index in indices[:: max(1, len(indices) // SAMPLED)]:
            try:
                item = _item(dataset, index, role)
            except UserError:  # reported when all images are read, or left out
                continue
            if _label_of(item, index, role) != targets[index]:
                return False
    return True


def _item(dataset: Any, index: int, role: str) -> Any:
    try:
        return dataset[index]
    except Exception as error:  # a user's code can raise any type
        reason = one_line(error)
        raise UserError(
            f"item {index} of {role} cannot be read ({type(error).__name__}: {reason}); correct it"
        ) from error


def _label(dataset: Any, index: int, role: str) -> int:
    return _label_of(_item(dataset, index, role), index, role)


def _label_of(item: Any, index: int, role: str) -> int:
    if not (isinstance(item, (tuple, list)) and len(item) >= 2):
        raise UserError(f"item {index} of {role} is a {type(item).__name__}; expected (image, label)")
    label = _as_int(item[1])
    if label is None:
        raise UserError(f"the label of item {index} of {role} is {item[1]!r:.80}; expected a whole number from 0 on")
    return label


def _as_int(label: Any) -> Optional[int]:
    if isinstance(label, (torch.Tensor, np.generic, np.ndarray)) and np.prod(label.shape) == 1:
        label = label.item()
    return label if type(label) is int else None


def _known_targets(dataset: Any) -> Optional[List[int]]:
    """Return the labels that a data set of torchvision, or a `Subset` of one, holds as `targets`; else `None`."""
    if isinstance(dataset, Subset):
        inner = _known_targets(dataset.dataset)
        whole: Any = dataset.dataset
        if inner is None or len(inner) != len(whole):
            return None
        return [inner[index] for index in dataset.indices]
    targets = getattr(dataset, "targets", None)
    if isinstance(targets, (np.ndarray, Tensor)):
        targets = targets.reshape(-1).tolist() if tuple(targets.shape[1:]) in ((), (1,)) and targets.ndim else None
    if not isinstance(targets, (list, tuple)) or getattr(dataset, "target_transform", None) is not None:
        return None
    values = list(targets)
    return values if values and all(type(value) is int for value in values) else None


def _check_constant(split: DatasetSplit, role: str) -> None:
    """Raise a UserError if one of the first images differs when it is read again."""
    for index in range(min(READ_TWICE, len(split))):
        try:
            first, second = (np.asarray(split.load(index)) for _ in range(2))
        except UnusableImage:  # reported when all images are read, or left out
            continue
        if first.shape != second.shape or (first != second).any():
            raise UserError(
                f"{role} returns different pixels for image {index} each time; remove its random transforms and its"
                " normalization, and give augment='pad_crop', 'resized_crop', 'rotate_flip' or 'none' instead"
            )
