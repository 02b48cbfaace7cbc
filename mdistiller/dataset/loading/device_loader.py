"""The loader of small sets: uint8 images stay on the device and are augmented batch by batch."""

from __future__ import annotations

import hashlib
from typing import Iterable, Iterator, Tuple, Union

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..augment.epoch_plan import EpochPlan
from ..augment.rotation import rotated_pixels, rotation_steps
from ..info import DatasetInfo
from ..options import Options
from .loader import Batch, Loader
from .splits import ArraySplit

# The kind of a fingerprint. Earlier versions included the padding of a training set, and called that kind "pixels".
KIND = {False: "pixels", True: "pixels without padding"}  # by whether the loader is for training


class DeviceLoader(Loader):
    """Batches of images on the device, without Python code per image, synchronization or copies from the host.

    The images are stored zero-padded, `[N, W, W, 3]` with `W = S + 2·padding`, and viewed as a list of pixels. A crop
    starts at pixel `n·W² + top·W + left`. Its other pixels are at fixed distances, kept in a plain and a mirrored
    table. A batch is thus a small look-up, a gather of pixels and a multiply-add. (One core of
    an AMD EPYC, B = 64, S = 32, images/s, median of 9 interleaved epochs: 162,000; indexing `[n, row, column]` 72,000;
    windows over a store with mirrored images too, in twice the memory, 183,000.)

    The distances of a rotated image depend on its angle; see `rotation_steps`.

    Args:
        split: the images, in the size of the model's input.
        info, options, device, train: see `Loader`.
    """

    def __init__(
        self, split: ArraySplit, info: DatasetInfo, options: Options, device: torch.device, train: bool
    ) -> None:
        super().__init__(info, split.targets.to(device), options, device, train)
        images = torch.as_tensor(split.images).to(device)
        p, size = self.padding, info.input_size
        assert images.shape[1:] == (size, size, 3), images.shape
        self.images = pad(images, (0, 0, p, p, p, p)) if p else images
        self._width = width = size + 2 * p
        table = torch.arange(size, device=device)[:, None] * width + torch.arange(size, device=device)
        self._distances = torch.stack([table, table.flip(1)]).view(2, size * size)

    def digest(self) -> str:
        return _digest(self.images)

    def fingerprint(self) -> Tuple[str, str]:
        p, size = self.padding, self.info.input_size
        return KIND[self.train], _digest(self.images[:, p : p + size, p : p + size])

    def _batches(self, plan: EpochPlan, slices: Iterable[Union[slice, Tensor]], seed: int) -> Iterator[Batch]:
        order = plan.order.to(self.device)
        first = (order * self._width**2) + (plan.top * self._width + plan.left).to(self.device)
        flip = plan.flip.long().to(self.device)
        size = self.info.input_size
        if self.augment == "rotate_flip":
            steps = rotation_steps(plan.angle, plan.flip, size).to(self.device)
        variant = None if self.num_variants is None else self.variants(plan).to(self.device)
        for part in slices:
            index = order[part]
            if self.augment == "none":
                images = self.images.index_select(0, index)
            elif self.augment == "rotate_flip":
                distances, inside = rotated_pixels(steps[part], size)
                images = self._gather(first[part, None] + distances.flatten(1)) * inside[..., None]
            else:
                images = self._gather(self._distances.index_select(0, flip[part]).add_(first[part, None]))
            batch = {
                "image": self._normalize(images),
                "target": self.targets.index_select(0, index),
                "index": index,
            }
            yield batch if variant is None else {**batch, "variant": variant[part]}

    def _gather(self, where: Tensor) -> Tensor:
        """Return the pixels with the numbers `where` (int64 [B, S·S]) as images, uint8 [B, S, S, 3]."""
        size = self.info.input_size
        return self.images.view(-1, 3).index_select(0, where.view(-1)).view(-1, size, size, 3)


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()
