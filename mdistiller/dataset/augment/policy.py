"""Random changes of single images by torchvision's transforms: RandAugment, TrivialAugment and random erasing.

Sources: "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space" (2020), "TrivialAugment:
Tuning-Free Yet State-of-the-Art Data Augmentation" (2021), "Random Erasing Data Augmentation" (2020).
"""

from __future__ import annotations

from typing import List, Sequence

import numpy as np
import torch
from torchvision.transforms import v2

from ..options import Options
from .epoch_plan import derive_seed


class ImagePolicy:
    """Changes images after cropping and flipping; a seed determines all random choices.

    Args:
        options: the options of the data set; those whose names begin with `policy`, and `erasing`, are used.
        mean: the mean color of the images in [0, 1], which fills erased boxes and pixels from outside the image.
    """

    def __init__(self, options: Options, mean: Sequence[float]) -> None:
        fill = [round(255 * channel) for channel in mean]
        self._transforms: List[v2.Transform] = []
        if options.policy == "rand_augment":
            operations = {"num_ops": options.policy_ops, "magnitude": options.policy_magnitude}
            self._transforms.append(v2.RandAugment(**operations, fill=fill))
        elif options.policy == "trivial_augment":
            self._transforms.append(v2.TrivialAugmentWide(fill=fill))
        if options.erasing > 0:
            self._transforms.append(v2.RandomErasing(options.erasing, value=fill))

    def __call__(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """Return an image, uint8 [S, S, 3], changed. Global random states do not change."""
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed("policy", seed))
            for transform in self._transforms:
                image = transform(image)
        return image.permute(1, 2, 0).numpy()
