"""The base class of both loaders: length, epochs, steps."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, Optional, Tuple, Union

import torch
from torch import Tensor

from ... import distributed
from ...errors import UserError
from ..augment.epoch_plan import EpochPlan, derive_seed, plan_epoch, plan_in_order
from ..augment.mixing import Batch, Mixing, with_neighbor
from ..augment.views import Views
from ..info import DatasetInfo
from ..options import Options
from .forms import count_variants, describe_variants
from .normalizer import Normalizer
from .unlabeled import with_unlabeled


class Loader:
    """An iterable of batches on one device.

    A batch is a dict with

    - "image": float32 [B, 3, S, S], normalized, with channels_last strides;
    - "target": int64 [B], labels; −1 for an image without one;
    - "index": int64 [B], indices of the images in the split;
    - "soft_target": float32 [B, N], the labels in the proportions of the images, if images are mixed; "target" then is
      the label with the larger share;
    - "variant": int64 [B], the augmented variant of each image, see `EpochPlan.variant`, or its fixed view; missing if
      `num_variants` is `None`;
    - "label_weight": float32 [B], if the batch also has images without labels; see `unlabeled.py`.

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
        info, targets, device, train: the arguments of the same names.
        num_images: the number of images, N.
        batch_size: the number of images in a full batch, of all processes.
        augment: the augmentation: "pad_crop", "resized_crop", "rotate_flip" or "none".
        padding: zeros on each side before the random crop, in pixels.
        flip: whether half of the augmented images are mirrored.
        rotation: the largest angle of a rotation, in degrees.
        views: the fixed views of each image; `None` for fresh changes in each epoch.
        num_variants: the number of augmented variants of an image, or of its fixed views; `None` if unlimited.
        unlimited_by: the setting that makes their number unlimited; empty if it is not.
        forms: the settings that determine the variants or views, as text.
        epoch: the last argument of `set_epoch`, initially 0.
        unlabeled: the loader of images without labels that each batch gets too, or `None`.

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
        number, self.unlimited_by = count_variants(options) if train else (1, "")
        self.num_variants: Optional[int] = number or None
        self._mixing: Optional[Mixing] = None
        if train and (options.mixup > 0 or options.cutmix > 0):
            self._mixing = Mixing(options.mixup, options.cutmix, info.num_classes)
        self.forms = describe_variants(options) if train else ""
        self.epoch = 0
        self.unlabeled: Optional[Loader] = None
        self._steps: Optional[int] = None  # of an epoch; see `set_num_steps`
        self._passes: Dict[int, EpochPlan] = {}  # that the last plan was part of, because a pass may last many epochs
        self._seed = options.seed
        self._normalize = Normalizer(info, device)

    def __len__(self) -> int:
        if self._steps is not None:
            return self._steps
        full, rest = divmod(self.num_images, self.batch_size)
        return full + (rest >= 2 * distributed.get_world_size() if self.train else rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines order and augmentation of later passes."""
        self.epoch = epoch
        if self.unlabeled is not None:
            self.unlabeled.set_epoch(epoch)

    def set_num_steps(self, num_steps: int) -> None:
        """Yield `num_steps` full batches in each epoch, whatever the number of images.

        The batches of all epochs are consecutive slices of one sequence of passes. A pass has each image once. Order,
        crops, flips and angles depend on the seed and the number of the pass. Augmentations of single images, such as
        `resized_crop`, depend on the seed and the epoch.
        """
        self._steps = num_steps

    @property
    def num_indices(self) -> int:
        """Number of different values of "index": images with and without labels."""
        return self.num_images + (0 if self.unlabeled is None else self.unlabeled.num_images)

    def plan(self, seed: Optional[int] = None) -> EpochPlan:
        """Return order, crops, flips, angles and views of this epoch, on the CPU.

        Args:
            seed: the seed to draw them from, without fixed views; `None` for the loader's own seed and views.
        """
        if not self.train:
            return plan_in_order(self.num_images)
        augment = self.augment in ("pad_crop", "rotate_flip")  # resized_crop has random numbers per image
        options: Dict[str, Any] = {"augment": augment, "flips": self.flip, "rotation": self.rotation}

        def drawn(number: int) -> EpochPlan:
            plan = plan_epoch(self.num_images, self.padding, self._seed if seed is None else seed, number, **options)
            if self.views is None or seed is not None:
                return plan
            view = self.views.in_epoch(self.num_images, self._seed, number if self._steps is None else number + 1)
            if not augment:
                return plan._replace(view=view[plan.order])
            return self.views.fix(plan, view, self.padding, self.flip, self.rotation)

        if self._steps is None:
            return drawn(self.epoch)
        length = self._steps * self.batch_size
        start = max(self.epoch - 1, 0) * length
        first, last = start // self.num_images, (start + length - 1) // self.num_images
        kept = self._passes if seed is None else {}
        passes = {number: kept.get(number) or drawn(number) for number in range(first, last + 1)}
        if seed is None:
            self._passes = passes
        skipped = start - first * self.num_images
        columns = zip(*passes.values())
        return EpochPlan(*(torch.cat(column)[skipped : skipped + length] for column in columns))

    def variants(self, plan: EpochPlan) -> Tensor:
        """Return the variant number of each image of a plan, int64 [N]; `num_variants` must not be `None`."""
        return plan.variant(self.padding, self.flip) if self.views is None else plan.view

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self._mixing is not None

    def variant_indices(self, start_step: int = 0) -> Iterator[Tensor]:
        """Yield `index · num_variants + variant` of the images in each batch of `iterate`, int64 [B], on the CPU."""
        assert self.num_variants is not None
        plan = self.plan()
        numbers = plan.order * self.num_variants + self.variants(plan)
        own = (numbers[part] for part in self.slices(start_step))
        if self.unlabeled is None:
            yield from own
        else:
            offset = self.num_images * self.num_variants
            for first, more in zip(own, self.unlabeled.variant_indices(start_step)):
                yield torch.cat([first, offset + more])

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of this epoch from step `start_step` (counted from 0) on, equal to those of a full pass."""
        if self.unlabeled is None:
            yield from self._iterate(start_step)
            return
        pairs = zip(self._iterate(start_step), self.unlabeled.iterate(start_step))
        for step, (batch, more) in enumerate(pairs, start_step):
            weight = self.images_in(step) / self._labeled_in(step)
            yield with_unlabeled(batch, more, self.num_images, weight)

    def _iterate(self, start_step: int) -> Iterator[Batch]:
        if self._mixing is None:
            yield from self._batches(self.plan(), self.slices(start_step), self._seed)
            return
        in_group = distributed.get_world_size() > 1
        parts: Iterable[Union[slice, Tensor]] = self.slices(start_step)
        if in_group:  # an image may be mixed with one of another process
            own = enumerate(self.slices(start_step), start_step)
            parts = [with_neighbor(part, self._whole(step)) for step, part in own]
        for step, batch in enumerate(self._batches(self.plan(), parts, self._seed), start_step):
            yield self._mixing(batch, derive_seed("mix", self._seed, self.epoch, step), neighbor_first=in_group)

    def sample(self, num_batches: int) -> Iterator[Batch]:
        """Yield training batches whose random choices differ from those of `iterate`; only their images are read.

        The choices depend on the seed and the epoch. Images are not mixed.

        Args:
            num_batches: the number of batches; at most the full batches of a pass are returned. A set smaller than a
                batch gives one batch of all images.
        """
        seed = derive_seed("sample", self._seed)
        steps = min(num_batches, max(1, self.num_images // self.batch_size))
        yield from self._batches(self.plan(seed), self.slices(0, steps), seed)

    def unaugmented(self) -> Iterator[Batch]:
        """Yield every image un-augmented, in index order; in a process group the batches go to the processes in turn.

        These are the images of a validation pass, for a training set too.
        """
        num_batches = -(-self.num_images // self.batch_size)
        own = range(distributed.get_rank(), num_batches, distributed.get_world_size())
        yield from self._batches(plan_in_order(self.num_images, self.padding), map(self._whole, own), self._seed)

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
        return self._labeled_in(step) + (0 if self.unlabeled is None else self.unlabeled.batch_size)

    def _labeled_in(self, step: int) -> int:
        return self.batch_size if self._steps else min(self.batch_size, self.num_images - step * self.batch_size)

    def _whole(self, step: int) -> slice:
        start = step * self.batch_size
        return slice(start, start + self._labeled_in(step))

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
