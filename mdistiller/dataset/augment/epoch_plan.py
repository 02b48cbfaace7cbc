"""All random choices of an epoch; they follow from the seed and the number of the epoch.

They are drawn on the CPU even for a loader on a GPU, so that an epoch is the same on every machine and in both loaders.
The cost is a copy of 2 MB per epoch (50,000 images).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor


class EpochPlan(NamedTuple):
    """The random choices of an epoch of N images; entry k belongs to the k-th image of the epoch.

    Attributes:
        order: int64 [N], the index of the k-th image.
        top, left: int64 [N], offset of its crop in the zero-padded image, in pixels, 0 to 2·padding.
        flip: bool [N], whether the crop, or the rotated image, is then mirrored left to right.
        angle: float64 [N], degrees by which the image is rotated, counter-clockwise.
        view: int64 [N], number of the fixed view that is shown, see `Views`; −1 where views are not fixed.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    angle: Tensor
    view: Tensor

    def variant(self, padding: int, flips: bool = True) -> Tensor:
        """Return the variant numbers int64 [N] of padded, cropped and perhaps mirrored images.

        Args:
            padding: p, zeros on each side of the image, in pixels.
            flips: whether images are mirrored. The number is `(top·(2p+1) + left)·2 + flip` in [0, 2(2p+1)²), without
                flips `top·(2p+1) + left` in [0, (2p+1)²).
        """
        offset = self.top * (2 * padding + 1) + self.left
        return offset * 2 + self.flip if flips else offset


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that is a hash of all parts."""
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def plan_epoch(
    num_images: int,
    padding: int,
    seed: int,
    epoch: int,
    augment: bool = True,
    flips: bool = True,
    rotation: float = 0.0,
) -> EpochPlan:
    """Draw order, crops, flips and angles of a training epoch.

    The choices are independent: without flips, for example, the crops stay the same.

    Args:
        num_images: the number of images, N.
        padding: zeros on each side of the image, in pixels.
        seed, epoch: the seed and the epoch, which determine all choices.
        augment: whether to augment; otherwise only the order is random.
        flips: whether half of the images are mirrored.
        rotation: largest angle in degrees; angles are uniform in [−rotation, rotation].
    """
    generator = torch.Generator().manual_seed(derive_seed("epoch", seed, epoch))
    order = torch.randperm(num_images, generator=generator)
    if not augment:
        return EpochPlan(order, *_no_augmentation(num_images))
    return EpochPlan(order, *draw_changes(generator, num_images, padding, flips, rotation), _not_fixed(num_images))


def draw_changes(
    generator: torch.Generator, num_images: int, padding: int, flips: bool, rotation: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw `top`, `left`, `flip` and `angle` of an `EpochPlan`; the arguments are those of `plan_epoch`."""
    top, left = torch.randint(2 * padding + 1, (2, num_images), generator=generator)
    flip = (torch.rand(num_images, generator=generator) < 0.5) & flips
    angle = (2 * torch.rand(num_images, generator=generator, dtype=torch.float64) - 1) * rotation
    return top, left, flip, angle


def plan_in_order(num_images: int, padding: int = 0) -> EpochPlan:
    """Return the plan of a pass over every image, un-augmented and in index order.

    Args:
        num_images: the number of images, N.
        padding: zeros on each side of the stored images, in pixels; the crop leaves them out.
    """
    top, left, *others = _no_augmentation(num_images)
    return EpochPlan(torch.arange(num_images), top + padding, left + padding, *others)


def _no_augmentation(num_images: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    zeros = torch.zeros(num_images, dtype=torch.int64)
    return zeros, zeros, zeros.bool(), zeros.double(), _not_fixed(num_images)


def _not_fixed(num_images: int) -> Tensor:
    return torch.full((num_images,), -1)
