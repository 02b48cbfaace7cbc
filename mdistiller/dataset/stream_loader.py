"""Large sets: images that worker processes read, decode and augment."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from ..errors import UserError
from .draws import mix
from .images import View
from .info import DatasetInfo
from .loader import Batch, Loader
from .options import Options
from .splits import ImageSplit

Step = Tuple[List[int], List[int]]  # indices and variants of a batch
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of RandomResizedCrop: part of the area, width / height


class StreamLoader(Loader):
    """Batches from worker processes; normalised on the device, after the copy.

    Order and augmentation depend on the seed, the epoch and the image only, not on the number of workers. With
    "pad_crop" and "none" the batches equal those of a `DeviceLoader`. The caller's random numbers are left alone.

    Args:
        split: the images.
        view: how they are shown un-augmented.
        info, options, device, train: see `Loader`.
    """

    def __init__(
        self,
        split: ImageSplit,
        view: View,
        info: DatasetInfo,
        options: Options,
        device: torch.device,
        train: bool,
    ) -> None:
        super().__init__(info, split.targets, options, device, train)
        self._split = split
        self._view = view
        self._num_workers = options.num_workers

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        seed = mix("images", self._seed, self.epoch)
        draws = self.draws()
        order, variant = draws.order, draws.variant(self.padding)
        steps = ((order[part].tolist(), variant[part].tolist()) for part in self._slices(start_step))
        batches = DataLoader(
            _Reader(self._split, self._view, self.augment, self.padding, seed),
            batch_size=None,
            sampler=steps,
            num_workers=self._num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else the workers' seed is drawn from the global numbers
        )
        for batch in batches:
            if "error" in batch:
                raise UserError(batch["error"])
            batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
            batch["image"] = self._normalise(batch["image"])
            if self.num_variants is None:
                del batch["variant"]
            yield batch


class _Reader(Dataset):
    """Takes a step (indices, variants) to its batch.

    What cannot be read is returned as text, not raised, because a worker process adds its traceback to what it raises.
    """

    def __init__(self, split: ImageSplit, view: View, augment: str, padding: int, seed: int) -> None:
        self.split = split
        self.view = view
        self.augment = augment
        self.padding = padding
        self.seed = seed

    def __getitem__(self, step: Step) -> Dict[str, Any]:
        try:
            images = [self.read(index, variant) for index, variant in zip(*step)]
        except UserError as error:
            return {"error": str(error)}
        index, variant = torch.tensor(step)
        return {
            "image": torch.from_numpy(np.stack(images)),
            "target": self.split.targets[index],
            "index": index,
            "variant": variant,
        }

    def read(self, index: int, variant: int) -> np.ndarray:
        image = self.split.load(index)
        if self.augment == "resized_crop":
            return np.asarray(resized_crop(image, self.view.size, mix(self.seed, index)))
        pixels = np.asarray(self.view(image))
        return pad_crop(pixels, variant, self.padding) if self.augment == "pad_crop" else pixels


def pad_crop(image: np.ndarray, variant: int, padding: int) -> np.ndarray:
    """Return form `variant` of an image, uint8 [S, S, 3]: zero-padded, cropped at `(top, left)`, perhaps mirrored."""
    offset, flip = divmod(variant, 2)
    top, left = divmod(offset, 2 * padding + 1)
    size = len(image)
    crop = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))[top : top + size, left : left + size]
    return crop[:, ::-1] if flip else crop


def resized_crop(image: Image.Image, size: int, seed: int) -> Image.Image:
    """Return a random part of the picture, resized to `size` px and mirrored half the time; all of it from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, list(CROP_SCALE), list(CROP_RATIO))
        flip = bool(torch.rand(()) < 0.5)
    crop = F.resized_crop(image, top, left, height, width, [size, size])
    return F.hflip(crop) if flip else crop
