"""The description of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Tuple


@dataclass(frozen=True)
class DatasetInfo:
    """What models, checkpoints and evaluation need to know about a data set.

    Attributes:
        name: the value of `DATASET.TYPE`.
        classes: class names, in label order.
        input_size: side of the square image that a model sees, in pixels.
        mean, std: channel statistics (RGB) of images scaled to [0, 1], for normalization.
        root: folder of the images, as for `DATASET.ROOT`; ignored by `==`.
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
