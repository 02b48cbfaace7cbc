"""Rotations in batches are Pillow's, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from mdistiller.dataset.augment.rotation import rotated_pixels, rotation_steps

SPECIAL = (0.0, 20.0, -20.0, 45.0, 90.0, -90.0, 180.0, -180.0)


@pytest.mark.parametrize("size", [1, 8, 33, 64])
def test_pixel_for_pixel(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    angle = (2 * torch.rand(60, generator=generator, dtype=torch.float64) - 1) * 180
    angle = torch.cat([torch.tensor(SPECIAL, dtype=torch.float64), angle])
    flip = torch.rand(len(angle), generator=generator) < 0.5
    image = torch.randint(1, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
    place, inside = rotated_pixels(rotation_steps(angle, flip, size), size)
    found = image.view(-1, 3)[place.long()] * inside[..., None]
    for number in range(len(angle)):
        expected = F.rotate(Image.fromarray(image.numpy()), angle[number].item())
        expected = np.asarray(F.hflip(expected) if flip[number] else expected)
        np.testing.assert_array_equal(found[number], expected, err_msg=f"{angle[number]}° {flip[number]}")


def test_a_quarter_turn_by_hand() -> None:
    place, inside = rotated_pixels(rotation_steps(torch.tensor([90.0]).double(), torch.tensor([False]), 2), 2)
    assert place[0].tolist() == [[1, 3], [0, 2]]  # counter-clockwise: the upper right pixel comes to the upper left
    assert inside.all()
