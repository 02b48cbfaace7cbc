"""Mixup and CutMix of batches, by torchvision's transforms.

"mixup: Beyond Empirical Risk Minimization" (2018) adds images in random proportions. "CutMix: Regularization Strategy
to Train Strong Classifiers with Localizable Features" (2019) pastes a random box of one image into another. As in
torchvision, an image is mixed with the one before it in its batch, and a batch has one proportion, or one box.

Shapes: `B` batch, `S` side in pixels, `N` classes.
"""

from __future__ import annotations

from typing import Dict, List

import torch
from torch import Tensor
from torchvision.transforms import v2

Batch = Dict[str, Tensor]


class Mixing:
    """Mixes batches; proportions and boxes follow from a seed.

    Args:
        mixup, cutmix: parameters `α > 0` of the Beta(α, α) distribution of the proportions; 0 for none. With both, each
            batch takes one of them at random, both equally often.
        num_classes: the number of classes, `N`.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        transforms = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._transforms: List[v2.Transform] = [
            transform(alpha=alpha, num_classes=num_classes) for transform, alpha in transforms if alpha > 0
        ]

    def __call__(self, batch: Batch, seed: int, neighbor_first: bool) -> Batch:
        """Return a batch with mixed images, and `soft_target [B, N]`, float32, their labels in the same proportions.

        `target` becomes the label with the larger share. Global random states do not change.

        Args:
            batch: the batch: `image [B, 3, S, S]`, `target [B]`, and other entries, which are not mixed.
            seed: the seed of the batch.
            neighbor_first: whether the first image is only the mixing partner of the second. It is then not returned.
                Otherwise the first image is mixed with the last.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            chosen = int(torch.randint(len(self._transforms), ()))
            image, soft = self._transforms[chosen](batch["image"], batch["target"])
        mixed = {**batch, "image": image, "soft_target": soft, "target": soft.argmax(1)}
        if neighbor_first:
            mixed = {key: value[1:] for key, value in mixed.items()}
        return {**mixed, "image": mixed["image"].contiguous(memory_format=torch.channels_last)}


def with_neighbor(part: slice, whole: slice) -> Tensor:
    """Return the positions of one process's part of a batch, preceded by the position of the image before that part.

    For the first part of a batch, that is the batch's last image.

    Args:
        part: the part of the batch that one process gets, as a slice of the order of the epoch.
        whole: the batch of all processes, as such a slice.
    """
    before = (part.start - 1 if part.start > whole.start else whole.stop - 1,)
    return torch.tensor([*before, *range(part.start, part.stop)])
