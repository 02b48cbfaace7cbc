"""EXIF orientation: cameras store the pixels of the sensor and a tag that says how to turn the image."""

from __future__ import annotations

import warnings
from typing import Tuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

PILLOW_WARNS = "(Possibly c|C)orrupt EXIF data"  # Pillow keeps the tags that it could read
warnings.filterwarnings("ignore", PILLOW_WARNS, UserWarning)

TAG = 0x0112
UPRIGHT = 1
TURNS = {  # by orientation, as in `PIL.ImageOps.exif_transpose`
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES_SWAPPED = (5, 6, 7, 8)
STARTS_RIGHT = (2, 3, 6, 7)  # the right edge of the upright image is the left or top edge of the stored one
STARTS_BELOW = (3, 4, 7, 8)  # the same for the lower edge


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8) of an opened image; 1 if it is missing or unreadable.

    Images other than JPEG are decoded.
    """
    if not isinstance(image, JpegImageFile):  # PNG may store it after the pixels, and Pillow turns a TIFF itself
        image.load()
    try:
        found = image.getexif().get(TAG)
    except Exception:  # Pillow's parser raises many types: SyntaxError, struct.error, ValueError, …
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def has_damaged_exif(image: Image.Image) -> bool:
    """Return whether an opened image has EXIF data that cannot be read."""
    try:
        Image.Exif().load(image.info.get("exif", b""))  # `Image.open` ignores errors in it
    except Exception:  # see `orientation`
        return True
    return False


def upright_size(image: Image.Image) -> Tuple[int, int]:
    """Return width and height in pixels of an opened image after it is turned upright."""
    swapped = orientation(image) in SIDES_SWAPPED  # first, because it can change the size of a TIFF
    width, height = image.size
    return (height, width) if swapped else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """Decode an opened image, turn it upright, and convert it to RGB."""
    turn = TURNS.get(orientation(image))
    picture = image.convert("RGB")
    return picture if turn is None else picture.transpose(turn)
