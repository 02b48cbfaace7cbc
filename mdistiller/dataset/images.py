"""From a picture of any size to the square that a model sees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, NamedTuple, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F
from tqdm import tqdm

from .info import DatasetInfo
from .splits import ArraySplit, ImageSplit

CHUNK = 1024  # images: a corrupt one is reported after at most this many more


class View(NamedTuple):
    """How a picture is shown un-augmented: shorter side resized (antialiased), then the centre cropped.

    Attributes:
        size: side of the result, in pixels.
        margin: whether the shorter side is resized to `size / 0.875` (the ImageNet recipe) rather than to `size`.
    """

    size: int
    margin: bool

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size == (self.size, self.size) and not self.margin:
            return image
        shorter = round(self.size / 0.875) if self.margin else self.size
        return F.center_crop(F.resize(image, shorter), [self.size, self.size])


def decode_chunks(split: ImageSplit, view: View, indices: Sequence[int], num_workers: int) -> Iterator[np.ndarray]:
    """Yield the images `indices` as uint8 [n, S, S, 3], n ≤ 1024; decoded by threads, with a bar if it takes long."""

    def decode(index: int) -> np.ndarray:
        return np.asarray(view(split.load(index)))

    with ThreadPoolExecutor(max(1, num_workers)) as pool, tqdm(
        total=len(indices), desc="reading images", unit="image", delay=2, disable=None, leave=False
    ) as bar:
        for start in range(0, len(indices), CHUNK):
            part = indices[start : start + CHUNK]
            yield np.stack(list(pool.map(decode, part)))
            bar.update(len(part))


def decode_all(split: ImageSplit, view: View, num_workers: int) -> ArraySplit:
    """Return the whole split in memory, as the model sees it."""
    if isinstance(split, ArraySplit) and split.images.shape[1:3] == (view.size, view.size) and not view.margin:
        return split
    images = np.empty((len(split), view.size, view.size, 3), dtype=np.uint8)
    done = 0
    for chunk in decode_chunks(split, view, range(len(split)), num_workers):
        images[done : done + len(chunk)] = chunk
        done += len(chunk)
    return ArraySplit(images, split.targets)


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
