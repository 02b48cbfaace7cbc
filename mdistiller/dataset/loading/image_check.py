"""The check of all images before training: unusable ones are named and counted, then refused or left out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...errors import UserError, listed
from ..images.decode import decode_region
from ..images.orientation import UPRIGHT, has_damaged_exif, orientation, upright_size
from ..images.stats import FolderCache
from .dataset_split import DatasetSplit
from .encoded import EncodedSplit, Transform, UnusableImage
from .splits import ImageSplit
from .workers import explain_worker_deaths

log = logging.getLogger("mdistiller")

MAX_NAMED = 3  # images named in a message
CHUNK = 256  # images per task of a worker
CHECK_SIZE = (8, 8)  # px; a JPEG is then decoded at 1/8 of its size, but read to its end


class ImageReport(NamedTuple):
    """The result of reading one image.

    Attributes:
        fault: the file with the error in parentheses; empty for a usable image, which the other fields describe.
        mode: Pillow's mode, for example `RGB` or `L`.
        turned: whether its EXIF orientation differs from upright.
        damaged_exif: whether its EXIF data cannot be read.
    """

    fault: str = ""
    mode: str = ""
    turned: bool = False
    damaged_exif: bool = False


def inspect_image(split: ImageSplit, index: int, transform: Transform) -> Tuple[ImageReport, Optional[Image.Image]]:
    """Return the report on image `index`, and `transform` of it (RGB), or `None` if it is unusable."""
    reports: List[ImageReport] = []

    def record_and_transform(image: Image.Image) -> Image.Image:
        mode = image.mode  # first, because reading the orientation may decode the image
        reports.append(ImageReport("", mode, orientation(image) != UPRIGHT, has_damaged_exif(image)))
        return transform(image)

    try:
        picture = split.load(index, record_and_transform)
    except UnusableImage as error:
        return ImageReport(error.fault), None
    return reports[0], picture


class SplitReport:
    """The result of reading the images of a split.

    Attributes:
        unusable: faults by index of the image.
        modes: number of images by mode, for modes other than RGB.
        turned: number of images whose EXIF orientation differs from upright.
        damaged_exif: number of images whose EXIF data cannot be read.
    """

    def __init__(self) -> None:
        self.unusable: Dict[int, str] = {}
        self.modes: Counter[str] = Counter()
        self.turned = 0
        self.damaged_exif = 0

    def add(self, index: int, report: ImageReport) -> None:
        """Add the report of one image."""
        if report.fault:
            self.unusable[index] = report.fault
            return
        if report.mode != "RGB":
            self.modes[report.mode] += 1
        self.turned += report.turned
        self.damaged_exif += report.damaged_exif

    def state_dict(self) -> Dict[str, Any]:
        """Return what is cached, as plain values."""
        return {
            "unusable": sorted(self.unusable),
            "modes": self.modes,
            "turned": self.turned,
            "damaged_exif": self.damaged_exif,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> List[int]:
        """Restore cached values; return the indices of unusable images, which must be read again.

        Raises:
            AttributeError, TypeError, ValueError: the state is damaged.
        """
        self.modes = Counter({str(mode): int(count) for mode, count in state["modes"].items()})
        self.turned, self.damaged_exif = int(state["turned"]), int(state["damaged_exif"])
        return sorted({int(index) for index in state["unusable"]})


def unusable_error(faults: Sequence[str], num_images: int) -> UserError:
    """Return the error about unusable images, given as `PATH (REASON)`."""
    if len(faults) == 1:
        what, them = f"the image {faults[0]}", "it"
    else:
        what, them = f"{len(faults)} of {num_images} images: {listed(faults, MAX_NAMED, '; ')}", "them"
    return UserError(
        f"cannot read {what}; replace, convert or remove {them}, or leave {them} out with DATASET.CORRUPT skip"
    )


def usable_indices(split: ImageSplit, findings: SplitReport, corrupt: str, role: str) -> Tensor:
    """Return the sorted indices of usable images, int64 [n]; log how many were converted or left out.

    Args:
        split: the images.
        findings: reports on all of them.
        corrupt: "skip" leaves unusable images out; otherwise they raise an error.
        role: "training", "validation" or "unlabeled", for messages.

    Raises:
        UserError: an image is unusable and `corrupt` is not "skip", or a class has no usable image.
    """
    faults, total = list(findings.unusable.values()), len(split)
    if findings.modes:
        kinds = ", ".join(f"{count} {mode}" for mode, count in sorted(findings.modes.items()))
        converted = sum(findings.modes.values())
        log.info("%d of %d %s images are converted to RGB (%s)", converted, total, role, kinds)
    if findings.turned:
        log.info("%d of %d %s images are turned upright by their EXIF orientation", findings.turned, total, role)
    if findings.damaged_exif:
        log.warning(
            "%d of %d %s images have damaged EXIF data; they are used as they are stored",
            *(findings.damaged_exif, total, role),
        )
    if not faults:
        return torch.arange(total)
    if corrupt != "skip":
        raise unusable_error(faults, total)
    keep = torch.ones(total, dtype=torch.bool)
    keep[list(findings.unusable)] = False
    lost = set(split.targets.tolist()) - set(split.targets[keep].tolist())
    if lost:
        of_classes = "" if len(faults) == total else f" in {len(lost)} of the classes"
        first = next(fault for index, fault in findings.unusable.items() if int(split.targets[index]) in lost)
        raise UserError(f"no {role} image can be read{of_classes}, for example {first}; replace or convert some")
    named = listed(faults, MAX_NAMED, "; ")
    log.warning("left out %d of %d %s images that cannot be read: %s", len(faults), total, role, named)
    return keep.nonzero().squeeze(1)


def check_images(split: ImageSplit, corrupt: str, num_workers: int, role: str) -> ImageSplit:
    """Read every image of a streamed split once, in `num_workers` processes; return the split of the usable ones.

    The result is cached until a file is added, removed or changed. Unusable images are read again each time. With
    `corrupt` "unchecked" nothing is read. A `Dataset`, whose changes would not be noticed, is read only with "skip".
    """
    if corrupt == "unchecked":
        return split
    if isinstance(split, DatasetSplit) and corrupt == "skip":
        findings = SplitReport()
        for index, report in _read(split, range(len(split)), num_workers):
            findings.add(index, report)
        return _usable_part(split, findings, corrupt, role)
    if not isinstance(split, EncodedSplit):
        return split
    ends = [split.path(index).parent for index in (0, len(split) - 1)]
    # The role is part of the key, because both splits may be in train/.
    cache = FolderCache(Path(os.path.commonpath(ends)), f"{role} pictures", split.stamped_paths())
    findings = SplitReport()
    known = cache.load(*findings.state_dict())
    indices: Sequence[int] = range(len(split))
    try:
        if known is not None:
            again = findings.load_state_dict(known)
            indices = [index for index in again if index in indices]
    except (AttributeError, TypeError, ValueError):
        findings, known = SplitReport(), None
    for index, report in _read(split, indices, num_workers):
        findings.add(index, report)
    if known is None:
        cache.save(**findings.state_dict())
    return _usable_part(split, findings, corrupt, role)


def _usable_part(split: ImageSplit, findings: SplitReport, corrupt: str, role: str) -> ImageSplit:
    kept = usable_indices(split, findings, corrupt, role)
    return split if len(kept) == len(split) else split.subset(kept)


class _CheckDataset(Dataset):
    """Maps a list of indices to the reports on these images."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __getitem__(self, indices: List[int]) -> List[Tuple[int, ImageReport]]:
        return [(index, inspect_image(self.split, index, _shrink)[0]) for index in indices]


def _shrink(image: Image.Image) -> Image.Image:
    return decode_region(image, (0, 0, *upright_size(image)), CHECK_SIZE)


def _read(split: ImageSplit, indices: Sequence[int], num_workers: int) -> Iterator[Tuple[int, ImageReport]]:
    chunks = [list(indices[start : start + CHUNK]) for start in range(0, len(indices), CHUNK)]
    loader = DataLoader(
        _CheckDataset(split),
        batch_size=None,
        sampler=chunks,
        collate_fn=list,
        num_workers=min(num_workers, len(chunks)),
        generator=torch.Generator(),  # otherwise the seed of the workers would come from the global generator
    )
    with tqdm(total=len(indices), desc="checking images", unit="image", delay=2, disable=None, leave=False) as bar:
        for part in explain_worker_deaths(loader):
            yield from part
            bar.update(len(part))
