"""One pass over the validation images: what student and teacher compute for them.

Shapes: `n` images, `B` images of a batch, `K` classes, `m` sampled images, `C` channels, `H`/`W` of the final map,
`S` side in pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..dataset.loading.loader import Normaliser
from ..distillers import DeployedStudent
from ..distillers.heads import split_forward
from ..engine.speed.precision import pick_device, prepare_device
from ..errors import UserError
from ..export.source import val_pixels
from .runs import Run
from .teachers import Teacher

MAX_FEATURES = 1500  # images whose features are kept
MAX_CLASSES = 10  # whose features are kept
MAX_PICTURES = 12  # of a gallery


class Outputs(NamedTuple):
    """What a network computes: `logits [n, K]`; `pooled [m, C]`, `None` if it has no pooled feature."""

    logits: Tensor
    pooled: Optional[Tensor]


class Shown(NamedTuple):
    """An image of a gallery: its number, its pixels uint8 `[S, S, 3]`."""

    number: int
    pixels: Tensor


class Spectra(NamedTuple):
    """Mean energy of each frequency over images and channels, `[H, W]`, zero frequency first.

    Attributes:
        before: of the student's final map.
        filtered: after filter and mask.
        fused: of the weighted sum of both branches.
    """

    before: Tensor
    filtered: Tensor
    fused: Tensor


@dataclass
class Observation:
    """What was seen of a run.

    Attributes:
        target: labels, int64 `[n]`.
        sampled: numbers of the images with features, int64 `[m]`; see `feature_classes`.
        student, teacher: their outputs.
        only_teacher, only_student: images that only one of them gets right, the surest first.
        spectra: of SFAKD's frequency branch.
        checksum: of the pixels.
    """

    target: Tensor
    sampled: Tensor
    student: Outputs
    teacher: Optional[Outputs]
    only_teacher: List[Shown]
    only_student: List[Shown]
    spectra: Optional[Spectra]
    checksum: int


def feature_classes(num_classes: int) -> List[int]:
    """Return the labels whose features are kept: all, or `MAX_CLASSES` that are evenly spread."""
    number = min(num_classes, MAX_CLASSES)
    return [place * num_classes // number for place in range(number)]


def observe(runs: Sequence[Run], teachers: Sequence[Teacher]) -> List[Observation]:
    """Evaluate each run, and each teacher, once on the validation images.

    Raises:
        UserError: the data set cannot be read, or the runs were validated on different images.
    """
    device = pick_device()
    prepare_device(device)
    known: Dict[str, Outputs] = {}
    seen: List[Observation] = []
    for run, teacher in zip(runs, teachers):
        found = _observe(run, teacher, known.get(teacher.key), device)
        if found.teacher is not None:
            known[teacher.key] = found.teacher
        seen.append(found)
        first, size = seen[0], run.source.view == runs[0].source.view
        if not torch.equal(found.target, first.target) or (size and found.checksum != first.checksum):
            raise _other_images(run)
    return seen


def _other_images(run: Run) -> UserError:
    return UserError(
        f"the run {run.folder} was validated on other images than the first run; give runs with the same DATASET.ROOT,"
        " DATASET.VAL_FRACTION and EXPERIMENT.SEED"
    )


@torch.no_grad()
def _observe(run: Run, teacher: Teacher, known: Optional[Outputs], device: torch.device) -> Observation:
    student = run.source.student.to(device).to(memory_format=torch.channels_last)
    model = teacher.model if known is None else None
    if model is not None:
        model = model.to(device).to(memory_format=torch.channels_last)
    normalise = Normaliser(run.source.info, device)
    try:
        num_images, batches = val_pixels(run.source)
    except UserError as error:
        raise UserError(
            f"the validation images of the run {run.folder} cannot be read: {error} (--set DATASET.ROOT FOLDER names"
            " another place)"
        ) from None
    if known is not None and len(known.logits) != num_images:
        raise _other_images(run)
    sample, own, taught = _Sample(run.source.info.num_classes), _Collected(), _Collected()
    targets = []
    spectra = _SpectraSum(student)
    only_teacher, only_student = _Surest(MAX_PICTURES), _Surest(MAX_PICTURES)
    checksum, start = 0, 0
    for pixels, target in batches:
        image = normalise(pixels.to(device))
        logits, pooled, final_map = student_outputs(student, image)
        targets.append(target.cpu())
        chosen = sample.choose(targets[-1], start)
        logits = own.add(logits, pooled, chosen)
        spectra.add(final_map)
        checksum = zlib.crc32(pixels.numpy().tobytes(), checksum)
        reference: Optional[Tensor] = None
        if model is not None:
            output, feats = model(image)
            reference = taught.add(output, feats.get("pooled_feat"), chosen)
        elif known is not None:
            reference = known.logits[start : start + len(target)]
        if reference is not None:
            for one, other, gallery in ((reference, logits, only_teacher), (logits, reference, only_student)):
                gallery.add(one, other, targets[-1], pixels, start)
        start += len(target)
    return Observation(
        torch.cat(targets),
        torch.tensor(sample.numbers),
        own.outputs(),
        known if model is None else taught.outputs(),
        only_teacher.shown(),
        only_student.shown(),
        spectra.means(),
        checksum,
    )


def student_outputs(student: DeployedStudent, image: Tensor) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """Return logits `[B, K]`, pooled feature `[B, C]` and final map of a deployed student.

    With a head, the feature is the one that the teacher's classifier consumes.
    """
    if student.head is None:
        logits, feats = student.backbone(image)
        return logits, feats.get("pooled_feat"), feats.get("final_map")
    final_map, _ = split_forward(student.backbone, image)
    output = student.head(final_map)
    return output.logits, output.pooled, final_map


class _Sample:
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
class _Collected:
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
        return Outputs(torch.cat(self.logits), torch.cat(self.pooled) if self.pooled else None)


class _Surest:
    """Keeps the images that one classifier gets right and another wrong, with the highest probability of the first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: List[Tuple[float, Shown]] = []

    def add(self, right: Tensor, wrong: Tensor, target: Tensor, pixels: Tensor, start: int) -> None:
        chosen = (right.argmax(1) == target) & (wrong.argmax(1) != target)
        sure = right.softmax(1).gather(1, target[:, None])[:, 0]
        for i in chosen.nonzero()[:, 0].tolist():
            self._kept.append((sure[i].item(), Shown(start + i, pixels[i].clone())))
        self._kept = sorted(self._kept, key=lambda entry: (-entry[0], entry[1].number))[: self.limit]

    def shown(self) -> List[Shown]:
        return [image for _, image in self._kept]


def frequency_fusion(student: DeployedStudent) -> Optional[Any]:
    """Return SFAKD's fusion, if the deployed student has one with a frequency branch."""
    fusion: Any = getattr(student.head.projector, "fusion", None) if student.head is not None else None
    return fusion if isinstance(getattr(fusion, "frequency", None), nn.Module) else None


class _SpectraSum:
    """Sums the energy of the spectra over batches; nothing without a frequency branch."""

    def __init__(self, student: DeployedStudent) -> None:
        self.fusion = frequency_fusion(student)
        self._sums: List[Any] = [0.0, 0.0, 0.0]
        self._images = 0

    def add(self, final_map: Optional[Tensor]) -> None:
        if self.fusion is None or final_map is None:
            return
        for i, maps in enumerate((final_map, self.fusion.frequency(final_map), self.fusion(final_map))):
            energy = torch.fft.fft2(maps.float(), norm="ortho").abs() ** 2
            self._sums[i] = self._sums[i] + energy.mean(1).sum(0).double().cpu()
        self._images += len(final_map)

    def means(self) -> Optional[Spectra]:
        return Spectra(*(total / self._images for total in self._sums)) if self._images else None
