"""Accumulators for one pass over the validation images: outputs, features, gallery images and spectra.

Shapes: `n` images, `B` images of a batch, `K` classes, `m` sampled images, `C` channels, `H`/`W` of the final map,
`S` side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from ..distillers import DeployedStudent

MAX_FEATURES = 1500  # images whose features are kept
MAX_CLASSES = 10  # whose features are kept
MAX_PICTURES = 12  # of a gallery


class Outputs(NamedTuple):
    """What a network computes: `logits [n, K]`; `pooled [m, C]`, `None` if it has no pooled feature."""

    logits: Tensor
    pooled: Optional[Tensor]


class GalleryImage(NamedTuple):
    """An image of a gallery: its number, its pixels uint8 `[S, S, 3]`."""

    number: int
    pixels: Tensor


class Spectra(NamedTuple):
    """Mean energy of each frequency over images and channels, `[H, W]`, zero frequency first.

    Attributes:
        before: the energy of the student's final map.
        filtered: the energy of that map after filter and mask.
        fused: the energy of the weighted sum of both branches.
    """

    before: Tensor
    filtered: Tensor
    fused: Tensor


def feature_classes(num_classes: int) -> List[int]:
    """Return the labels whose features are kept: all, or `MAX_CLASSES` that are evenly spread."""
    number = min(num_classes, MAX_CLASSES)
    return [place * num_classes // number for place in range(number)]


class Sample:
    """Chooses the images whose features are kept: the first ones of each of `feature_classes`."""

    def __init__(self, num_classes: int) -> None:
        labels = feature_classes(num_classes)
        self._left = dict.fromkeys(labels, MAX_FEATURES // len(labels))
        self.numbers: List[int] = []

    def choose(self, target: Tensor, start: int) -> List[int]:
        """Return places in a batch that begins with image `start`."""
        places = []
        for place, label in enumerate(target.tolist()):
            if self._left.get(label, 0) > 0:
                self._left[label] -= 1
                places.append(place)
        self.numbers += [start + place for place in places]
        return places


@dataclass
class OutputCollector:
    """Outputs of the batches so far; features of the sampled images."""

    logits: List[Tensor] = field(default_factory=list)
    pooled: List[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, pooled: Optional[Tensor], chosen: List[int]) -> Tensor:
        """Add a batch; return its logits on the CPU."""
        self.logits.append(logits.float().cpu())
        if pooled is not None:
            self.pooled.append(pooled[chosen].float().cpu())
        return self.logits[-1]

    def outputs(self) -> Outputs:
        """Return the outputs of all batches."""
        return Outputs(torch.cat(self.logits), torch.cat(self.pooled) if self.pooled else None)


class MostConfident:
    """Keeps the images that one classifier gets right and another gets wrong, ranked by the first one's confidence."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: List[Tuple[float, GalleryImage]] = []

    def add(self, right: Tensor, wrong: Tensor, target: Tensor, pixels: Tensor, start: int) -> None:
        """Add a batch that begins with image `start`.

        Args:
            right, wrong: the logits `[B, K]` of the classifier to be right and of the one to be wrong.
            target: the labels, int64 `[B]`.
            pixels: the images, uint8 `[B, S, S, 3]`.
        """
        chosen = (right.argmax(1) == target) & (wrong.argmax(1) != target)
        sure = right.softmax(1).gather(1, target[:, None])[:, 0]
        for i in chosen.nonzero()[:, 0].tolist():
            self._kept.append((sure[i].item(), GalleryImage(start + i, pixels[i].clone())))
        self._kept = sorted(self._kept, key=lambda entry: (-entry[0], entry[1].number))[: self.limit]

    def images(self) -> List[GalleryImage]:
        """Return the images, the most confident first."""
        return [image for _, image in self._kept]


def frequency_fusion(student: DeployedStudent) -> Optional[Any]:
    """Return SFAKD's fusion, if the deployed student has one with a frequency branch."""
    fusion: Any = getattr(student.head.projector, "fusion", None) if student.head is not None else None
    return fusion if isinstance(getattr(fusion, "frequency", None), nn.Module) else None


class SpectraSum:
    """Sums the energy of the spectra over batches; nothing without a frequency branch."""

    def __init__(self, student: DeployedStudent) -> None:
        self.fusion = frequency_fusion(student)
        self._sums: List[Any] = [0.0, 0.0, 0.0]
        self._images = 0

    def add(self, final_map: Optional[Tensor]) -> None:
        """Add the final maps `[B, C, H, W]` of a batch."""
        if self.fusion is None or final_map is None:
            return
        for i, maps in enumerate((final_map, self.fusion.frequency(final_map), self.fusion(final_map))):
            energy = torch.fft.fft2(maps.float(), norm="ortho").abs() ** 2
            self._sums[i] = self._sums[i] + energy.mean(1).sum(0).double().cpu()
        self._images += len(final_map)

    def means(self) -> Optional[Spectra]:
        """Return the means over the images, or `None` without a frequency branch."""
        return Spectra(*(total / self._images for total in self._sums)) if self._images else None
