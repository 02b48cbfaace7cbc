"""Decoding: from an image file of any size to the square input of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from PIL import Image
from torchvision.transforms import functional as F

from .orientation import STARTS_BELOW, STARTS_RIGHT, orientation, upright, upright_size

SCALES = (8, 4, 2)  # JPEG images can be decoded at 1 / scale of their size
REDUCING_GAP = 2.0  # the decoded image stays at least this much larger than the result, as in Pillow's `thumbnail`


def decode_region(image: Image.Image, part: Sequence[int], size: Sequence[int]) -> Image.Image:
    """Decode a part of an opened image, turn it upright, resize it (bilinear, antialiased), and convert it to RGB.

    A JPEG that is much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size; resizing still averages over at
    least 2×2 pixels. For images of 1600 and 4000 px resized to 224 px, pixels differed from those of a full decoding by
    0.7 and 0.4 of 255 on average, by 5 at most. (One core of an AMD EPYC, decoding and `View(224, margin=True)`:
    4000×3000 px 129 → 50 ms, 1600×1200 px 16 → 11 ms. 500×375 px, an average ImageNet image, is too small to gain:
    2.3 ms; with torchvision's `decode_jpeg` and resizing of tensors 3.0 ms.)

    Args:
        image: the opened image, not decoded yet.
        part: the left, top, right and bottom edge, in pixels of the whole upright image.
        size: the width and the height of the result, in pixels.
    """
    left, top, right, bottom = part
    whole = upright_size(image)
    spare = min((right - left) / size[0], (bottom - top) / size[1])
    scale = next((scale for scale in SCALES if spare >= REDUCING_GAP * scale), 1)
    if scale > 1:
        image.draft(None, (image.size[0] // scale, image.size[1] // scale))
    picture = upright(image)
    if picture.size == whole:  # crop first, as torchvision does
        return F.resized_crop(picture, top, left, bottom - top, right - left, [size[1], size[0]])
    # Sides that are not multiples of the scale are rounded up at the end of the stored rows and columns.
    turned = orientation(image)
    x = picture.size[0] - whole[0] / scale if turned in STARTS_RIGHT else 0.0
    y = picture.size[1] - whole[1] / scale if turned in STARTS_BELOW else 0.0
    box = (x + left / scale, y + top / scale, x + right / scale, y + bottom / scale)
    return picture.resize((size[0], size[1]), Image.Resampling.BILINEAR, box)


@dataclass(frozen=True)
class View:
    """The un-augmented transform: resize the shorter side (antialiased), then crop the center.

    Attributes:
        size: side of the result, in pixels.
        margin: whether the shorter side is resized to `size / 0.875` (the ImageNet recipe) rather than to `size`.
    """

    size: int
    margin: bool

    @property
    def shorter_side(self) -> int:
        """Side in pixels to which the shorter side of an image is resized."""
        return round(self.size / 0.875) if self.margin else self.size

    def __call__(self, image: Image.Image) -> Image.Image:
        whole = upright_size(image)
        resized = decode_region(image, (0, 0, *whole), [int(self.shorter_side * side / min(whole)) for side in whole])
        return F.center_crop(resized, [self.size, self.size])
