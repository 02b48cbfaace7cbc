"""The number of variants of an image that training may show, and the settings that determine them."""

from __future__ import annotations

from typing import Tuple

import PIL
import torchvision

from ..options import Options


def count_variants(options: Options) -> Tuple[int, str]:
    """Return the number of augmented variants or fixed views of a training image, and an empty string.

    If their number is unlimited, return 0 and the setting that makes it so.
    """
    finite = {"pad_crop": (1 + options.flip) * (2 * options.padding + 1) ** 2, "none": 1}
    countless = {
        f"MIXUP {options.mixup}": options.mixup > 0,
        f"CUTMIX {options.cutmix}": options.cutmix > 0,
        f"AUGMENT {options.augment}": options.augment not in finite and not options.views,
        f"POLICY {options.policy}": options.policy != "none" and not options.views,
        f"ERASING {options.erasing}": options.erasing > 0 and not options.views,
    }
    for setting, holds in countless.items():
        if holds:
            return 0, f"DATASET.{setting}"
    return options.views or finite[options.augment], ""


def describe_variants(options: Options) -> str:
    """Return, as text, what determines the variants or fixed views of a training image."""
    no_flip = "" if options.flip and options.augment != "none" else " no flip"
    text = f"{options.augment} {options.padding if options.augment == 'pad_crop' else 0}{no_flip}"
    if not options.views:
        return text
    rotation = options.rotation if options.augment == "rotate_flip" else 0
    strength = f" {options.policy_ops} {options.policy_magnitude}" if options.policy == "rand_augment" else ""
    return (
        f"{text}; rotation {rotation:g}; policy {options.policy}{strength}; erasing {options.erasing:g};"
        f" {options.views} views of seed {options.views_seed};"
        f" torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    )
