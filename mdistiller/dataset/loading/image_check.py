"""Pictures that cannot be used: found, named and counted before training, and then refused or left out."""

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

from ...errors import UserError
from .decode import decoded
from .orientation import UPRIGHT, has_damaged_exif, orientation, upright_size
from .splits import FileSplit, ImageSplit, Look, UnusableImage
from .stats import Memory
from .workers import deaths_explained

log = logging.getLogger("mdistiller")

NAMED = 3  # in a message
CHUNK = 256  # pictures that a worker reads at a time
GLANCE = (8, 8)  # px: a JPEG is then decoded at an eighth of its size, but read to its end


class Sight(NamedTuple):
    """What reading one picture brings to light.

    Attributes:
        fault: the file and what is wrong with it; empty for one that can be used, which the others describe.
        mode: Pillow's name of its kind.
        turned: whether its EXIF orientation is another than upright.
        damaged_exif: whether its EXIF data cannot be read.
    """

    fault: str = ""
    mode: str = ""
    turned: bool = False
    damaged_exif: bool = False


def inspect(split: ImageSplit, index: int, look: Look) -> Tuple[Sight, Optional[Image.Image]]:
    """Return what image `index` is like, and what `look` makes of it (RGB) if it can be used."""
    sights: List[Sight] = []

    def noting(image: Image.Image) -> Image.Image:
        mode = image.mode  # first, because reading the orientation may decode the picture
        sights.append(Sight("", mode, orientation(image) != UPRIGHT, has_damaged_exif(image)))
        return look(image)

    try:
        picture = split.load(index, noting)
    except UnusableImage as error:
        return Sight(error.fault), None
    return sights[0], picture


class Findings:
    """What reading the pictures of a split brings to light.

    Attributes:
        unusable: by index, the file and what is wrong with it.
        modes: how many pictures were not RGB, by Pillow's name of what they were.
        turned: how many pictures have an EXIF orientation other than upright.
        damaged_exif: how many pictures have EXIF data that cannot be read.
    """

    def __init__(self) -> None:
        self.unusable: Dict[int, str] = {}
        self.modes: Counter[str] = Counter()
        self.turned = 0
        self.damaged_exif = 0

    def add(self, index: int, sight: Sight) -> None:
        """Take in one picture."""
        if sight.fault:
            self.unusable[index] = sight.fault
            return
        if sight.mode != "RGB":
            self.modes[sight.mode] += 1
        self.turned += sight.turned
        self.damaged_exif += sight.damaged_exif

    def state(self) -> Dict[str, Any]:
        """Return what is remembered of them, as plain values."""
        return {
            "unusable": sorted(self.unusable),
            "modes": self.modes,
            "turned": self.turned,
            "damaged_exif": self.damaged_exif,
        }

    def load_state(self, state: Dict[str, Any]) -> List[int]:
        """Take over what was remembered, and return the indices of the unusable, which are to be tried again.

        Raises:
            AttributeError, TypeError, ValueError: the state is damaged.
        """
        self.modes = Counter({str(mode): int(count) for mode, count in state["modes"].items()})
        self.turned, self.damaged_exif = int(state["turned"]), int(state["damaged_exif"])
        return sorted({int(index) for index in state["unusable"]})


def refusal(faults: Sequence[str], num_images: int) -> UserError:
    """Return the error that names pictures, given as `PATH (REASON)`, which cannot be used."""
    if len(faults) == 1:
        what, them = f"the image {faults[0]}", "it"
    else:
        what, them = f"{len(faults)} of {num_images} images: {_first_few(faults)}", "them"
    return UserError(
        f"cannot read {what}; replace, convert or remove {them}, or leave {them} out with DATASET.CORRUPT skip"
    )


def _first_few(faults: Sequence[str]) -> str:
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(faults[:NAMED]) + more


def usable(split: ImageSplit, findings: Findings, corrupt: str, role: str) -> Tensor:
    """Return the indices of the pictures that can be used, int64 [n], rising; say how many were converted or left out.

    Args:
        split: the pictures.
        findings: of all of them.
        corrupt: whether those that cannot be used are left out ("skip").
        role: "training" or "validation", for the lines.

    Raises:
        UserError: some cannot be used and are not to be left out, or none of a class can.
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
        raise refusal(faults, total)
    keep = torch.ones(total, dtype=torch.bool)
    keep[list(findings.unusable)] = False
    lost = set(split.targets.tolist()) - set(split.targets[keep].tolist())
    if lost:
        first = next(fault for index, fault in findings.unusable.items() if int(split.targets[index]) in lost)
        raise UserError(
            f"no {role} image of {len(lost)} of the classes can be read, as {first}; replace or convert some"
        )
    named = _first_few(faults)
    log.warning("left out %d of %d %s images that cannot be read: %s", len(faults), total, role, named)
    return keep.nonzero().squeeze(1)


def checked(split: ImageSplit, corrupt: str, num_workers: int, role: str) -> ImageSplit:
    """Return a split that is to be streamed, once all its pictures are known to be usable, or without the others.

    Each is read once, by `num_workers` processes. The result is remembered until a file is added, removed or changed.
    Unreadable pictures are tried again each time. With `corrupt` "unchecked" nothing is read.
    """
    if corrupt == "unchecked" or not isinstance(split, FileSplit):
        return split
    ends = [split.path(index).parent for index in (0, len(split) - 1)]
    memory = Memory(Path(os.path.commonpath(ends)), f"{role} pictures", split.paths())  # both may lie in train/
    findings = Findings()
    known = memory.recall(*findings.state())
    indices: Sequence[int] = range(len(split))
    try:
        if known is not None:
            again = findings.load_state(known)
            indices = [index for index in again if index in indices]
    except (AttributeError, TypeError, ValueError):
        findings, known = Findings(), None
    for index, sight in _read(split, indices, num_workers):
        findings.add(index, sight)
    if known is None:
        memory.store(**findings.state())
    kept = usable(split, findings, corrupt, role)
    return split if len(kept) == len(split) else split.subset(kept)


Glance = Tuple[int, Sight]  # index, and what the picture is like


class _Glances(Dataset):
    def __init__(self, split: FileSplit) -> None:
        self.split = split

    def __getitem__(self, indices: List[int]) -> List[Glance]:
        return [self._glance(index) for index in indices]

    def _glance(self, index: int) -> Glance:

        return index, inspect(self.split, index, lambda image: decoded(image, (0, 0, *upright_size(image)), GLANCE))[0]


def _read(split: FileSplit, indices: Sequence[int], num_workers: int) -> Iterator[Glance]:
    chunks = [list(indices[start : start + CHUNK]) for start in range(0, len(indices), CHUNK)]
    loader = DataLoader(
        _Glances(split),
        batch_size=None,
        sampler=chunks,
        collate_fn=list,
        num_workers=min(num_workers, len(chunks)),
        generator=torch.Generator(),  # else the workers' seed is drawn from the global numbers
    )
    with tqdm(total=len(indices), desc="checking images", unit="image", delay=2, disable=None, leave=False) as bar:
        for part in deaths_explained(loader):
            yield from part
            bar.update(len(part))
