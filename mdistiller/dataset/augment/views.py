"""Fixed views: each image has a few augmented forms, which the epochs show in turn.

The idea of storing a teacher's outputs for such views is that of "A Fast Knowledge Distillation Framework for Visual
Recognition" (2022) and "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (2022).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .epoch_plan import EpochPlan, derive_seed, draw_changes


class Views(NamedTuple):
    """The fixed views of a training set of N images.

    What changes an image in a view follows from `seed`, the index of the image, and the number of the view.

    Attributes:
        number: the number of views of each image, K.
        seed: the seed of the changes. The order of the views depends on the seed of the epochs instead.
    """

    number: int
    seed: int

    def in_epoch(self, num_images: int, seed: int, epoch: int) -> Tensor:
        """Return the view of each image in an epoch, int64 [N], by the index of the image.

        Epochs 1 to K show each view of each image once, and so do epochs K + 1 to 2K, and so on. Within such a cycle,
        all images use one random order of the views, and each image starts at a random place in it.

        Args:
            num_images: the number of images, N.
            seed, epoch: the seed and the epoch, which determine the order; `epoch` counts from 1.
        """
        turn, position = divmod(epoch - 1, self.number)
        generator = torch.Generator().manual_seed(derive_seed("views", seed, turn))
        start = torch.randint(self.number, (num_images,), generator=generator)
        return torch.randperm(self.number, generator=generator)[(start + position) % self.number]

    def image_seed(self, index: int, view: int) -> int:
        """Return the seed of the changes of image `index` in view `view` that an epoch's plan leaves open."""
        return derive_seed("view", self.seed, index, view)

    def fix(self, plan: EpochPlan, view: Tensor, padding: int, flips: bool, rotation: float) -> EpochPlan:
        """Return a plan of the same order whose crops, flips and angles are those of the views.

        Args:
            plan: the plan of an epoch.
            view: the view of each image, int64 [N], see `in_epoch`.
            padding, flips, rotation: the settings of the changes, as for `plan_epoch`.
        """
        order, shown = plan.order, view[plan.order]
        fixed = tuple(torch.empty_like(column) for column in (plan.top, plan.left, plan.flip, plan.angle))
        for number in range(self.number):
            generator = torch.Generator().manual_seed(derive_seed("view", self.seed, number))
            here = shown == number
            for column, drawn in zip(fixed, draw_changes(generator, len(view), padding, flips, rotation)):
                column[here] = drawn[order[here]]
        top, left, flip, angle = fixed
        return EpochPlan(order, top, left, flip, angle, shown)
