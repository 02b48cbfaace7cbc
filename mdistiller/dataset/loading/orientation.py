"""EXIF orientation: cameras store what the sensor saw, and note in a tag how the picture is to be turned."""

from __future__ import annotations

import warnings
from typing import Tuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

PILLOW_WARNS = "(Possibly c|C)orrupt EXIF data"  # and keeps the tags that it has read until then
warnings.filterwarnings("ignore", PILLOW_WARNS, UserWarning)

TAG = 0x0112
UPRIGHT = 1
TURNS = {  # by orientation; the same as in `PIL.ImageOps.exif_transpose`
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES_SWAPPED = (5, 6, 7, 8)
STARTS_RIGHT = (2, 3, 6, 7)  # the upright picture's right edge is the stored one's left or top edge
STARTS_BELOW = (3, 4, 7, 8)  # the same of its lower edge


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8) of an opened picture; 1 if it has none, or none that can be read.

    A JPEG is not decoded by this, all other kinds are.
    """
    if not isinstance(image, JpegImageFile):  # PNG may hold it after the pixels, and Pillow itself turns a TIFF
        image.load()
    try:
        found = image.getexif().get(TAG)
    except Exception:  # Pillow raises what its parser met: SyntaxError, struct.error, ValueError, ...
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def has_damaged_exif(image: Image.Image) -> bool:
    """Whether an opened picture has EXIF data that cannot be read."""
    try:
        Image.Exif().load(image.info.get("exif", b""))  # `Image.open` has read it too, but keeps failures to itself
    except Exception:  # see `orientation`
        return True
    return False


def upright_size(image: Image.Image) -> Tuple[int, int]:
    """Return width and height, in pixels, that an opened picture has once it is turned."""
    swapped = orientation(image) in SIDES_SWAPPED  # first, because it may change the size of a TIFF
    width, height = image.size
    return (height, width) if swapped else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """Return an opened picture, decoded and turned, as RGB."""
    turn = TURNS.get(orientation(image))
    picture = image.convert("RGB")
    return picture if turn is None else picture.transpose(turn)
