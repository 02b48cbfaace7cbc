"""Splits whose images are decoded on access, wherever their bytes are; and what makes an image unusable."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Tuple, Union

import numpy as np
from PIL import Image
from torch import Tensor

from ...errors import UserError, one_line
from ..images.file_names import picture_formats
from ..images.orientation import upright

# Pillow warns about these images; `_check` rejects them.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
MAX_PIXELS = 89_478_485  # Pillow's limit, 268 MB as RGB
MAX_ASPECT_RATIO = 100  # sides that differ more: resizing the shorter one would take gigabytes

Transform = Callable[[Image.Image], Image.Image]  # from an opened image of any mode, not yet decoded, to an RGB image


class UnusableImage(UserError):
    """An image that cannot be used; `fault` is its file with the reason in parentheses."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"cannot read the image {fault}; replace, convert or remove it")
        self.fault = fault


class EncodedSplit:
    """Images that are decoded on access; a kind of storage is a subclass.

    Attributes:
        targets: labels, int64 [N].
        stats: size in bytes and modification time in ns of each image, int64 [N, 2], or −1 where it is missing.
    """

    targets: Tensor
    stats: Any  # an array, or a cached property that reads one

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, index: int) -> Path:
        """Return the file of an image, or its name below the file that contains it; for messages and digests."""
        raise NotImplementedError

    def open(self, index: int) -> Union[Path, BinaryIO]:
        """Return the encoded image, as a file to open or as its content. Any exception makes the image unusable."""
        raise NotImplementedError

    def subset(self, indices: Tensor) -> Any:
        """Return a split of the images `indices` (int64 [n]), of the same class."""
        raise NotImplementedError

    def fingerprint(self) -> Tuple[str, str]:
        """Return a kind and a digest of that kind; see `Loader.fingerprint`."""
        raise NotImplementedError

    def stamped_paths(self) -> Iterator[Tuple[Path, str]]:
        """Yield each path with the image's size and modification time as text."""
        for index, (size, time) in enumerate(self.stats.tolist()):
            yield self.path(index), "missing" if size < 0 else f"{size}\0{time}"

    def load(self, index: int, transform: Transform = upright) -> Image.Image:
        """Return `transform` of image `index`, RGB.

        Raises:
            UnusableImage: the image cannot be decoded, has more than 8 bits per channel, or has an extreme size.
        """
        try:
            with Image.open(self.open(index), formats=picture_formats()) as image:
                _check(image)
                return transform(image)
        except MemoryError:  # not caused by the image
            raise
        except Exception as error:
            reason = one_line(error)
            name = "".join(c if c.isprintable() else "?" for c in str(self.path(index)))  # names may be undecodable
            raise UnusableImage(f"{name} ({reason})") from error

    def digest(self) -> str:
        """Return a hexadecimal digest of names (with their folders), sizes and dates."""
        state = hashlib.sha256(b"upright\n")  # versions before EXIF orientation was applied had other pixels
        for path, stamp in self.stamped_paths():
            state.update(os.fsencode(f"{path.parent.name}/{path.name} {stamp}\n"))
        return state.hexdigest()


def as_names(names: Any) -> np.ndarray:
    """Return names as one array of bytes.

    A list of a million names takes half a gigabyte, and every worker process would come to hold a copy of it, because
    reference counting writes to the memory pages of its entries.
    """
    return names if isinstance(names, np.ndarray) else np.array([os.fsencode(name) for name in names])


def _check(image: Image.Image) -> None:
    width, height = image.size
    if image.mode[0] in "IF":  # 16 or 32 bits per channel; conversion to RGB would clip, not scale
        raise TypeError(f"more than 8 bits a channel, mode {image.mode}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} px, more than {MAX_PIXELS} pixels")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"{width}×{height} px, one side more than {MAX_ASPECT_RATIO} times the other")
