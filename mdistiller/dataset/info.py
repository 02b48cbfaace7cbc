"""What is known of a data set besides its images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Tuple


@dataclass(frozen=True)
class DatasetInfo:
    """Facts that models, checkpoints and evaluation need.

    Attributes:
        name: the value of `DATASET.TYPE`.
        classes: class names, in label order.
        input_size: side of the square image that a model sees, in pixels.
        mean, std: channel statistics (RGB) of images scaled to [0, 1], for normalisation.
        root: the folder that the images were read from, as `DATASET.ROOT` takes it. It does not describe the images,
            so `==` ignores it.
    """

    name: str
    classes: Tuple[str, ...]
    input_size: int
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    root: Optional[Path] = field(default=None, repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        return len(self.classes)
