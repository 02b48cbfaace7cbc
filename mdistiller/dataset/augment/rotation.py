"""Rotation of square images in batches, pixel for pixel as Pillow and torchvision's `RandomRotation` rotate them.

Pillow takes the nearest pixel, computed in fixed-point numbers of 1/65536 pixel. The same arithmetic gives the same
pixels on any device. Shapes: `N` images per epoch, `B` per batch, `S` side in pixels.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

FRACTION_BITS = 16


def rotation_steps(angle: Tensor, flip: Tensor, size: int) -> Tensor:
    """Return the source positions of the pixels of rotated images, in 1/65536 pixel, int32 [N, 2, 3].

    Pixel `(y, x)` of image `n` comes from row `s[n, 0, 0] + y·s[n, 0, 1] + x·s[n, 0, 2]`, rounded down. Its column
    follows from `s[n, 1]` in the same way.

    Args:
        angle: the angles in degrees, float64 [N], counter-clockwise, about the center.
        flip: bool [N], whether the rotated image is then mirrored left to right.
        size: the side S of the images in pixels, at most 4096.
    """
    cos, sin = torch.deg2rad(angle).cos(), torch.deg2rad(angle).sin()
    center = size / 2
    starts = [center + (0.5 - center) * (cos + sin), center + (0.5 - center) * (cos - sin)]
    exact = torch.stack([starts[0], cos, sin, starts[1], -sin, cos], dim=1)
    steps = (exact * 2**FRACTION_BITS + 0.5).floor().int().view(-1, 2, 3)
    steps[flip, :, 0] += (size - 1) * steps[flip, :, 2]
    steps[flip, :, 2] *= -1
    return steps


def rotated_pixels(steps: Tensor, size: int) -> Tuple[Tensor, Tensor]:
    """Return the source pixel of each pixel of a batch, and whether it lies inside the image.

    Args:
        steps: the source positions that `rotation_steps` returned, int32 [B, 2, 3].
        size: the side S of the images in pixels.

    Returns:
        `(place, inside)`, [B, S, S] each: int32, `row·S + column` and 0 outside, and uint8, 1 or 0.
    """
    start, down, right = steps[..., None, None].unbind(2)  # [B, 2, 1, 1] each
    along = torch.arange(size, dtype=torch.int32, device=steps.device)
    row, column = ((start + down * along[:, None] + right * along) >> FRACTION_BITS).unbind(1)
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    return (row * size + column) * inside, inside.to(torch.uint8)
