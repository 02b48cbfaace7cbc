"""The loader of large sets: worker processes read, decode and augment the images."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from ...errors import UserError
from ..augment.epoch_plan import EpochPlan, derive_seed
from ..augment.policy import ImagePolicy
from ..augment.views import Views
from ..images.decode import View, decode_region
from ..images.orientation import upright_size
from ..info import DatasetInfo
from ..options import Options
from .encoded import UnusableImage
from .image_check import unusable_error
from .loader import Batch, Loader
from .splits import ImageSplit
from .workers import (
    explain_worker_deaths,
    ignore_signals,
    kill_workers,
    kill_workers_first_at_exit,
    signals_blocked,
    worker_context,
)

Row = Tuple[int, int, int, bool, float, int]  # an image's entry in the `EpochPlan`
Step = Tuple[List[Row], int]  # the images of a batch, and the seed of the epoch
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of RandomResizedCrop: fraction of the area, width / height


class StreamLoader(Loader):
    """Batches from worker processes; images are copied as uint8 and normalized on the device.

    The workers live as long as the loader. Order and augmentation depend on seed, epoch and image, not on the number of
    workers. With "pad_crop", "rotate_flip" and "none" the batches equal those of a `DeviceLoader`. Global random states
    do not change.

    Args:
        split: the images.
        view: the un-augmented transform.
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
        policy = ImagePolicy(options, info.mean) if train and options.changes_single_images else None
        self._reader = _Reader(split, view, self.augment, self.padding, self.flip, policy, self.views)
        self._num_workers = options.num_workers
        self._idle: Optional[DataLoader] = None  # workers waiting for the next pass

    def digest(self) -> str:
        return self._reader.split.digest()

    def fingerprint(self) -> Tuple[str, str]:
        return self._reader.split.fingerprint()

    def unaugmented(self) -> Iterator[Batch]:
        plain = copy.copy(self)  # with workers of its own, which end with the pass
        plain._idle, plain.augment = None, "none"
        plain._reader = _Reader(self._reader.split, self._reader.view, "none", 0, False, None, None)
        yield from Loader.unaugmented(plain)

    def _batches(self, plan: EpochPlan, slices: Iterable[Union[slice, Tensor]], seed: int) -> Iterator[Batch]:
        seed = derive_seed("images", seed, self.epoch)
        variant = None if self.num_variants is None else self.variants(plan)
        slices = list(slices)  # a generator would refer to `self` and keep workers alive
        # A pass that starts during another one gets its own workers.
        workers: Optional[DataLoader] = self._workers(seed) if self._idle is None else self._idle
        self._idle = None
        assert workers is not None and isinstance(workers.sampler, _Steps)
        try:
            workers.sampler.steps = ((list(zip(*(column[part].tolist() for column in plan))), seed) for part in slices)
            with signals_blocked():
                batches = iter(workers)
            kill_workers_first_at_exit()
            for batch, part in zip(explain_worker_deaths(batches), slices):
                if "faults" in batch:
                    raise unusable_error(batch["faults"], self.num_images)
                if variant is not None:
                    batch["variant"] = variant[part]
                batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
                batch["image"] = self._normalize(batch["image"])
                yield batch
        except UserError:
            workers = None  # ends them now, not when the traceback is collected
            raise
        except KeyboardInterrupt:
            kill_workers()  # a worker may be stuck in a read
            workers = None
            raise
        finally:
            self._idle = workers

    def _workers(self, seed: int) -> DataLoader:
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=_Steps(),
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_signals,
            multiprocessing_context=worker_context() if self._num_workers else None,
            generator=torch.Generator().manual_seed(seed),  # otherwise their seed would come from the global generator
        )


class _Steps(Sampler):
    """The batches that the workers read in the current pass."""

    steps: Iterator[Step] = iter(())

    def __init__(self) -> None:  # the base class takes a deprecated argument
        pass

    def __iter__(self) -> Iterator[Step]:
        return self.steps


class _Reader(Dataset):
    """Reads the batch of a step.

    Faults are returned as text, because an exception in a worker would carry its traceback.
    """

    def __init__(
        self,
        split: ImageSplit,
        view: View,
        augment: str,
        padding: int,
        flip: bool,
        policy: Optional[ImagePolicy],
        views: Optional[Views],
    ) -> None:
        self.split = split
        self.view = view
        self.augment = augment
        self.padding = padding
        self.flip = flip
        self.policy = policy
        self.views = views

    def __getitem__(self, step: Step) -> Dict[str, Any]:
        rows, seed = step
        images, faults = [], []
        for row in rows:
            own_seed = self._seed_of(row, seed)
            try:
                image = self.read(row, own_seed)
                images.append(image if self.policy is None else self.policy(image, own_seed))
            except UnusableImage as error:
                faults.append(error.fault)
        if faults:
            return {"faults": faults}
        index = torch.tensor([row[0] for row in rows])
        return {
            "image": torch.from_numpy(np.stack(images)),
            "target": self.split.targets[index],
            "index": index,
        }

    def _seed_of(self, row: Row, seed: int) -> int:
        """Return the seed of an image: of its fixed view, or of the epoch."""
        index, view = row[0], row[-1]
        return derive_seed(seed, index) if self.views is None or view < 0 else self.views.image_seed(index, view)

    def read(self, row: Row, seed: int) -> np.ndarray:
        index, top, left, flip, angle, _ = row
        if self.augment == "resized_crop":
            crop = partial(resized_crop, size=self.view.size, seed=seed, flips=self.flip)
            return np.asarray(self.split.load(index, crop))
        image = self.split.load(index, self.view)
        if self.augment == "rotate_flip":
            image = F.rotate(image, angle)
        pixels = np.asarray(image)
        if self.augment == "pad_crop":
            size, margin = self.view.size, (self.padding, self.padding)
            pixels = np.pad(pixels, (margin, margin, (0, 0)))[top : top + size, left : left + size]
        return pixels[:, ::-1] if flip else pixels


def resized_crop(image: Image.Image, size: int, seed: int, flips: bool = True) -> Image.Image:
    """Return a random part of an opened image, resized to `size` px; it follows from `seed`.

    With `flips` it is mirrored half the time. The part is chosen before the image is decoded, so that a reduced scale
    can be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        whole = torch.empty(upright_size(image)[::-1], device="meta")  # only its shape is used
        top, left, height, width = RandomResizedCrop.get_params(whole, list(CROP_SCALE), list(CROP_RATIO))
        flip = bool(torch.rand(()) < 0.5)
    crop = decode_region(image, (left, top, left + width, top + height), (size, size))
    return F.hflip(crop) if flip and flips else crop
