"""From a picture of any size to the square that a model sees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Iterator, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F
from tqdm import tqdm

from ..errors import UserError
from .corrupt import Findings, Sight, inspect, usable
from .info import DatasetInfo
from .orientation import STARTS_BELOW, STARTS_RIGHT, orientation, upright, upright_size
from .splits import ArraySplit, ImageSplit

CHUNK = 1024  # images
SCALES = (8, 4, 2)  # at one over which JPEG pictures can be decoded
GAP = 2.0  # how many times larger than its result a picture stays nevertheless, as in Pillow's `thumbnail`


def decoded(image: Image.Image, part: Sequence[int], size: Sequence[int]) -> Image.Image:
    """Return a part of an opened picture, turned upright, resized (bilinear, antialiased), as RGB.

    A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size: fewer frequencies, and resizing still
    averages over at least 2×2 pixels. Pictures of 1600 and 4000 px shown at 224 px differed from those without it by
    0.7 and 0.4 of 255 on average, by 5 at most. (One core of an AMD EPYC, decoding and `View(224, margin=True)`:
    4000×3000 px 129 → 50 ms, 1600×1200 px 16 → 11 ms. 500×375 px, an average ImageNet picture, is too small to gain:
    2.3 ms; with torchvision's `decode_jpeg` and resizing of tensors 3.0 ms.)

    Args:
        image: not decoded yet.
        part: left, top, right and bottom edge, in pixels of the whole picture, upright.
        size: width and height of the result, in pixels.
    """
    left, top, right, bottom = part
    whole = upright_size(image)
    spare = min((right - left) / size[0], (bottom - top) / size[1])
    scale = next((scale for scale in SCALES if spare >= GAP * scale), 1)
    if scale > 1:
        image.draft(None, (image.size[0] // scale, image.size[1] // scale))
    picture = upright(image)
    if picture.size == whole:  # cut first, as torchvision does
        return F.resized_crop(picture, top, left, bottom - top, right - left, [size[1], size[0]])
    # sides that are no multiple of the scale are rounded up, at the end of the stored rows and columns
    turned = orientation(image)
    x = picture.size[0] - whole[0] / scale if turned in STARTS_RIGHT else 0.0
    y = picture.size[1] - whole[1] / scale if turned in STARTS_BELOW else 0.0
    box = (x + left / scale, y + top / scale, x + right / scale, y + bottom / scale)
    return picture.resize((size[0], size[1]), Image.Resampling.BILINEAR, box)


@dataclass(frozen=True)
class View:
    """How an opened picture is shown un-augmented: shorter side resized (antialiased), then the centre cropped.

    Attributes:
        size: side of the result, in pixels.
        margin: whether the shorter side is resized to `size / 0.875` (the ImageNet recipe) rather than to `size`.
    """

    size: int
    margin: bool

    def __call__(self, image: Image.Image) -> Image.Image:
        shorter = round(self.size / 0.875) if self.margin else self.size
        whole = upright_size(image)
        resized = decoded(image, (0, 0, *whole), [int(shorter * side / min(whole)) for side in whole])
        return F.center_crop(resized, [self.size, self.size])


def decode_chunks(
    split: ImageSplit, view: View, indices: Sequence[int], num_workers: int, findings: Findings
) -> Iterator[np.ndarray]:
    """Yield the images `indices` as uint8 [n, S, S, 3], n ≤ 1024; decoded by threads, with a bar if it takes long.

    Those that cannot be used are left out; `findings` takes in what they and the others are.
    """

    def decode(index: int) -> Tuple[Sight, Optional[np.ndarray]]:
        sight, picture = inspect(split, index, view)
        return sight, None if picture is None else np.asarray(picture)

    with ThreadPoolExecutor(max(1, num_workers)) as pool, tqdm(
        total=len(indices), desc="reading images", unit="image", delay=2, disable=None, leave=False
    ) as bar:
        for start in range(0, len(indices), CHUNK):
            part = indices[start : start + CHUNK]
            found = list(pool.map(decode, part))
            for index, (sight, _) in zip(part, found):
                findings.add(index, sight)
            images = [image for _, image in found if image is not None]
            if images:
                yield np.stack(images)
            bar.update(len(part))


def decode_all(split: ImageSplit, view: View, num_workers: int, corrupt: str, role: str) -> ArraySplit:
    """Return the split in memory, as the model sees it, without the pictures that cannot be used; see `usable`."""
    if isinstance(split, ArraySplit) and split.images.shape[1:3] == (view.size, view.size) and not view.margin:
        return split
    try:
        images = np.empty((len(split), view.size, view.size, 3), dtype=np.uint8)
    except MemoryError as error:
        raise UserError(f"{len(split)} images do not fit in memory ({error}); set DATASET.IN_MEMORY no") from None
    done = 0
    findings = Findings()
    for chunk in decode_chunks(split, view, range(len(split)), num_workers, findings):
        images[done : done + len(chunk)] = chunk
        done += len(chunk)
    kept = usable(split, findings, corrupt, role)
    return ArraySplit(images[:done], split.targets[kept])


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
