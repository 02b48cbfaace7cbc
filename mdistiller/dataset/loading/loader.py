"""The base class of both loaders: length, epochs, steps."""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, Optional, Tuple, Union

import PIL
import torch
import torchvision
from torch import Tensor

from ... import distributed
from ...errors import UserError
from ..augment.epoch_plan import EpochPlan, derive_seed, plan_epoch, plan_in_order
from ..augment.mixing import Mixing, with_neighbour
from ..augment.views import Views
from ..info import DatasetInfo
from ..options import Options

Batch = Dict[str, Tensor]


class Normaliser:
    """Normalizes uint8 images: `(x / 255 − mean) / std`, computed as one multiply-add."""

    def __init__(self, info: DatasetInfo, device: torch.device) -> None:
        mean = torch.tensor(info.mean, dtype=torch.float64)
        std = torch.tensor(info.std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().to(device)
        self.shift = (-mean / std).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Convert uint8 [B, S, S, 3] to float32 [B, 3, S, S] with channels_last strides."""
        return torch.addcmul(self.shift, images.float(), self.scale).permute(0, 3, 1, 2)


class Loader:
    """An iterable of batches on one device.

    A batch is a dict with

    - "image": float32 [B, 3, S, S], normalized, with channels_last strides;
    - "target": int64 [B], labels;
    - "index": int64 [B], indices of the images in the split;
    - "soft_target": float32 [B, N], the labels in the proportions of the images, if images are mixed; "target" then is
      the label with the larger share;
    - "variant": int64 [B], the augmented variant of each image, see `EpochPlan.variant`, or its fixed view; missing if
      `num_variants` is `None`.

    All randomness of an epoch follows from the seed and the number of the epoch. Call `set_epoch` before each epoch;
    otherwise every pass repeats epoch 0. Training shuffles, and keeps the last partial batch unless it has a single
    image, on which BatchNorm cannot train. Validation yields every image un-augmented, in index order.

    In a process group, each training batch is divided into parts that differ by at most one image. A last batch with
    fewer than two images per process is dropped. Validation batches go to the processes in turn.

    Args:
        info: description of the data set.
        targets: labels in index order, int64 [N], on any device.
        options: see `Options`.
        device: device of the batches.
        train: whether to shuffle and augment.

    Attributes:
        info, targets, device, train: as given.
        num_images: N.
        batch_size: images in a full batch, of all processes.
        augment: "pad_crop", "resized_crop", "rotate_flip" or "none".
        padding: zeros on each side before the random crop, in pixels.
        flip: whether half of the augmented images are mirrored.
        rotation: largest angle of a rotation, in degrees.
        views: fixed views of each image; `None` for fresh changes in each epoch.
        num_variants: number of augmented variants of an image, or of its fixed views; `None` if unlimited.
        unlimited_by: the setting that makes their number unlimited; empty if it is not.
        epoch: last argument of `set_epoch`, initially 0.

    Raises:
        UserError: the training set has fewer than 2 images per process.
    """

    def __init__(self, info: DatasetInfo, targets: Tensor, options: Options, device: torch.device, train: bool) -> None:
        if train and len(targets) < 2 * distributed.get_world_size():
            number, each = len(targets), " for each process" if distributed.get_world_size() > 1 else ""
            raise UserError(
                f"the training set has {number} image{'s'[: number != 1]}; BatchNorm needs at least 2 in a batch{each}"
            )
        self.info = info
        self.targets = targets
        self.device = device
        self.train = train
        self.num_images = len(targets)
        self.batch_size = options.batch_size if train else options.test_batch_size
        self.augment = options.augment if train else "none"
        self.padding = options.padding if self.augment == "pad_crop" else 0
        self.flip = options.flip and self.augment != "none"
        self.rotation = options.rotation if self.augment == "rotate_flip" else 0.0
        self.views = Views(options.views, options.views_seed) if train and options.views else None
        num_variants = {"pad_crop": (1 + self.flip) * (2 * self.padding + 1) ** 2, "none": 1}.get(self.augment)
        if self.views is not None:
            num_variants = self.views.number
        unlimited = {
            f"MIXUP {options.mixup}": train and options.mixup > 0,
            f"CUTMIX {options.cutmix}": train and options.cutmix > 0,
            f"AUGMENT {self.augment}": num_variants is None,
            f"POLICY {options.policy}": train and options.policy != "none" and self.views is None,
            f"ERASING {options.erasing}": train and options.erasing > 0 and self.views is None,
        }
        self.unlimited_by = next((f"DATASET.{setting}" for setting, holds in unlimited.items() if holds), "")
        self.num_variants: Optional[int] = None if self.unlimited_by else num_variants
        self._mixing: Optional[Mixing] = None
        if train and (options.mixup > 0 or options.cutmix > 0):
            self._mixing = Mixing(options.mixup, options.cutmix, info.num_classes)
        strength = f" {options.policy_ops} {options.policy_magnitude}" if options.policy == "rand_augment" else ""
        self._changes = f"rotation {self.rotation:g}; policy {options.policy}{strength}; erasing {options.erasing:g}"
        self.epoch = 0
        self._seed = options.seed
        self._normalise = Normaliser(info, device)

    def __len__(self) -> int:
        full, rest = divmod(self.num_images, self.batch_size)
        return full + (rest >= 2 * distributed.get_world_size() if self.train else rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines order and augmentation of later passes."""
        self.epoch = epoch

    def plan(self, seed: Optional[int] = None) -> EpochPlan:
        """Return order, crops, flips, angles and views of this epoch, on the CPU.

        With another `seed`, they are others, and views are not fixed.
        """
        if not self.train:
            return plan_in_order(self.num_images)
        augment = self.augment in ("pad_crop", "rotate_flip")  # resized_crop has random numbers per image
        plan = plan_epoch(
            self.num_images,
            self.padding,
            self._seed if seed is None else seed,
            self.epoch,
            augment,
            flips=self.flip,
            rotation=self.rotation,
        )
        if self.views is None or seed is not None:
            return plan
        view = self.views.in_epoch(self.num_images, self._seed, self.epoch)
        if not augment:
            return plan._replace(view=view[plan.order])
        return self.views.fix(plan, view, self.padding, self.flip, self.rotation)

    def variants(self, plan: EpochPlan) -> Tensor:
        """Return the variant number of each image of a plan, int64 [N]; `num_variants` must not be `None`."""
        return plan.variant(self.padding, self.flip) if self.views is None else plan.view

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self._mixing is not None

    def forms(self) -> str:
        """Return, as text, what determines the variants or fixed views of an image."""
        text = f"{self.augment} {self.padding}{'' if self.flip else ' no flip'}"
        if self.views is None:
            return text
        libraries = f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
        return f"{text}; {self._changes}; {self.views.number} views of seed {self.views.seed}; {libraries}"

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of this epoch from step `start_step` (counted from 0) on, equal to those of a full pass."""
        if self._mixing is None:
            yield from self._batches(self.plan(), self.slices(start_step), self._seed)
            return
        in_group = distributed.get_world_size() > 1
        parts: Iterable[Union[slice, Tensor]] = self.slices(start_step)
        if in_group:  # an image may be mixed with one of another process
            own = enumerate(self.slices(start_step), start_step)
            parts = [with_neighbour(part, self._whole(step)) for step, part in own]
        for step, batch in enumerate(self._batches(self.plan(), parts, self._seed), start_step):
            yield self._mixing(batch, derive_seed("mix", self._seed, self.epoch, step), neighbour_first=in_group)

    def sample(self, num_batches: int) -> Iterator[Batch]:
        """Yield full training batches of other random choices than those of `iterate`; reads only their images.

        They follow from seed and epoch too. Images are not mixed. There are `num_batches`, but at most the full batches
        of a pass. A set smaller than a batch gives one batch of all images.
        """
        seed = derive_seed("sample", self._seed)
        steps = min(num_batches, max(1, self.num_images // self.batch_size))
        yield from self._batches(self.plan(seed), self.slices(0, steps), seed)

    def _batches(self, plan: EpochPlan, slices: Iterable[Union[slice, Tensor]], seed: int) -> Iterator[Batch]:
        """Yield a batch for each slice of a plan, or for positions int64 [B] in it.

        `seed` and epoch determine what the plan leaves open.
        """
        raise NotImplementedError

    def digest(self) -> str:
        """Return a hexadecimal digest of the images in order: of their pixels, or of file names, sizes and dates."""
        raise NotImplementedError

    def fingerprint(self) -> Tuple[str, str]:
        """Return a kind and a hexadecimal digest of that kind: of pixels, or of names and sizes of files.

        Unlike `digest`, it does not change when files are moved or copied. Compare only digests of the same kind.
        """
        raise NotImplementedError

    def images_in(self, step: int) -> int:
        """Return the number of images in batch `step` (counted from 0) over all processes."""
        return min(self.batch_size, self.num_images - step * self.batch_size)

    def _whole(self, step: int) -> slice:
        start = step * self.batch_size
        return slice(start, start + self.images_in(step))

    def slices(self, start_step: int, stop_step: Optional[int] = None) -> Iterator[slice]:
        """Yield the slices of the epoch's order that are this process's batches, from `start_step` to `stop_step`."""
        if not 0 <= start_step <= len(self):
            raise ValueError(f"start_step is {start_step}; an epoch has {len(self)} batches")
        for step in range(start_step, len(self) if stop_step is None else stop_step):
            part = self._whole(step)
            if self.train:
                yield distributed.local_slice(part)
            elif step % distributed.get_world_size() == distributed.get_rank():
                yield part
