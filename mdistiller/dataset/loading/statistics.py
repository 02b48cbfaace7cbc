"""Mean and standard deviation of a sample of a split's images."""

from __future__ import annotations

from typing import Sequence, Tuple

import torch

from ..augment.epoch_plan import derive_seed
from ..images.decode import View
from ..images.stats import measure
from ..options import Channels
from .image_check import SplitReport, unusable_error
from .in_memory import decode_chunks
from .splits import ImageSplit

SAMPLE = 10_000  # images, if a split has more


def measure_sample(split: ImageSplit, view: View, num_workers: int, corrupt: str) -> Tuple[Channels, Channels, int]:
    """Return mean and standard deviation of at most `SAMPLE` images, always the same ones, and their number.

    Args:
        split: the training images.
        view: how each image is prepared.
        num_workers: number of threads that decode images.
        corrupt: the value of `DATASET.CORRUPT`; `skip` leaves out images that cannot be used.

    Raises:
        UserError: an image cannot be used, or none can.
    """
    indices: Sequence[int] = range(len(split))
    if len(split) > SAMPLE:
        generator = torch.Generator().manual_seed(derive_seed("statistics"))
        indices = torch.randperm(len(split), generator=generator)[:SAMPLE].sort().values.tolist()
    findings = SplitReport()
    mean, std = measure(decode_chunks(split, view, indices, num_workers, findings))
    if findings.unusable and (corrupt != "skip" or len(findings.unusable) == len(indices)):
        raise unusable_error(list(findings.unusable.values()), len(indices))
    return mean, std, len(indices) - len(findings.unusable)
