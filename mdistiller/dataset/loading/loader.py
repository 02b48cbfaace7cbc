"""What both loaders have in common: lengths, epochs, steps."""

from __future__ import annotations

from typing import Dict, Iterator, Optional, Tuple

import torch
from torch import Tensor

from ... import distributed
from ...errors import UserError
from ..info import DatasetInfo
from ..options import Options
from .epoch_plan import EpochDraws, draw_epoch, in_file_order

Batch = Dict[str, Tensor]


class Normaliser:
    """Takes images from uint8 to what the model eats: `(x / 255 − mean) / std`, as one multiply-add."""

    def __init__(self, info: DatasetInfo, device: torch.device) -> None:
        mean = torch.tensor(info.mean, dtype=torch.float64)
        std = torch.tensor(info.std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().to(device)
        self.shift = (-mean / std).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Take uint8 [B, S, S, 3] to float32 [B, 3, S, S] in channels_last strides."""
        return torch.addcmul(self.shift, images.float(), self.scale).permute(0, 3, 1, 2)


class Loader:
    """An iterable of batches on one device.

    A batch is a dict with

    - "image": float32 [B, 3, S, S], normalised, channels_last strides;
    - "target": int64 [B], labels;
    - "index": int64 [B], numbers of the images in the split in use, from 0;
    - "variant": int64 [B], which of the `num_variants` augmented forms each image has, see `EpochDraws.variant`;
      there is no such key where `num_variants` is None.

    All randomness of an epoch comes from the seed and the epoch's number: call `set_epoch` before each epoch, or every
    pass repeats epoch 0. Training shuffles. The last, partial batch is kept, except when it has a single image, which
    BatchNorm cannot train on. Validation shows every image, in index order, un-augmented.

    Several processes share each training batch, in parts whose sizes differ by at most one image. A last batch with
    fewer than two images for each of them is dropped. Validation batches are dealt to them in turn.

    Args:
        info: of the data set.
        targets: labels in index order, int64 [N], on any device.
        options: of the data layer.
        device: where the batches are to be.
        train: whether to shuffle and augment.

    Attributes:
        info, targets, device, train: as given.
        num_images: N.
        batch_size: images in a full batch, of all processes.
        augment: "pad_crop", "resized_crop", "rotate_flip" or "none".
        padding: zeros on each side before the random crop, in pixels.
        flip: whether half of the images are mirrored, where they are augmented.
        rotation: the largest angle by which an image is rotated, in degrees.
        num_variants: how many augmented forms an image has, or None for infinitely many (resized_crop, rotate_flip).
        epoch: the number last given to `set_epoch`, 0 before.

    Raises:
        UserError: a training set of fewer than 2 images for each process.
    """

    def __init__(self, info: DatasetInfo, targets: Tensor, options: Options, device: torch.device, train: bool) -> None:
        if train and len(targets) < 2 * distributed.get_world_size():
            number, each = len(targets), " for each process" if distributed.get_world_size() > 1 else ""
            raise UserError(
                f"the training set has {number} image{'s'[: number != 1]}; BatchNorm needs at least 2 in a batch{each}"
            )
        self.info = info
        self.targets = targets
        self.device = device
        self.train = train
        self.num_images = len(targets)
        self.batch_size = options.batch_size if train else options.test_batch_size
        self.augment = options.augment if train else "none"
        self.padding = options.padding if self.augment == "pad_crop" else 0
        self.flip = options.flip and self.augment != "none"
        self.rotation = options.rotation if self.augment == "rotate_flip" else 0.0
        self.num_variants: Optional[int] = {
            "pad_crop": (1 + self.flip) * (2 * self.padding + 1) ** 2,
            "none": 1,
        }.get(self.augment)
        self.epoch = 0
        self._seed = options.seed
        self._normalise = Normaliser(info, device)

    def __len__(self) -> int:
        full, rest = divmod(self.num_images, self.batch_size)
        return full + (rest >= 2 * distributed.get_world_size() if self.train else rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()

    def set_epoch(self, epoch: int) -> None:
        """Fix the order and the augmentation of the passes that start from now on."""
        self.epoch = epoch

    def draws(self) -> EpochDraws:
        """Return this epoch's order, crops, flips and angles, on the CPU."""
        if not self.train:
            return in_file_order(self.num_images)
        augment = self.augment in ("pad_crop", "rotate_flip")  # resized_crop draws for each image
        return draw_epoch(
            self.num_images, self.padding, self._seed, self.epoch, augment, flips=self.flip, rotation=self.rotation
        )

    def variants(self, draws: EpochDraws) -> Tensor:
        """Return the number of the form that each image of `draws` has, int64 [N]; `num_variants` is not None."""
        return draws.variant(self.padding, self.flip)

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield this epoch's batches from number `start_step` (from 0) on, equal to those of a full pass."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return a fingerprint of the images in their order, hexadecimal: of their pixels, or of their files' names,
        sizes and dates.
        """
        raise NotImplementedError

    def fingerprint(self) -> Tuple[str, str]:
        """Return what is compared, and its digest, hexadecimal: pixels, or names and sizes of the images' files.

        Unlike `digest`, it stays the same where the files are moved or copied. Only digests of the same thing compare.
        """
        raise NotImplementedError

    def images_in(self, step: int) -> int:
        """Return how many images batch `step` (from 0) has, those of all processes."""
        return min(self.batch_size, self.num_images - step * self.batch_size)

    def slices(self, start_step: int) -> Iterator[slice]:
        """Yield which of the epoch's images, in its order, are in this process's batches from `start_step` on."""
        if not 0 <= start_step <= len(self):
            raise ValueError(f"start_step is {start_step}; an epoch has {len(self)} batches")
        for step in range(start_step, len(self)):
            start = step * self.batch_size
            part = slice(start, start + self.images_in(step))
            if self.train:
                yield distributed.local_slice(part)
            elif step % distributed.get_world_size() == distributed.get_rank():
                yield part
