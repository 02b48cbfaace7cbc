"""Decode a whole split into memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from ...errors import UserError
from ..images.decode import View
from .image_check import ImageReport, SplitReport, inspect_image, usable_indices
from .splits import ArraySplit, ImageSplit

CHUNK = 1024  # images


def decode_chunks(
    split: ImageSplit, view: View, indices: Sequence[int], num_workers: int, findings: SplitReport
) -> Iterator[np.ndarray]:
    """Decode images in threads; yield them as uint8 [n, S, S, 3], n ≤ 1024.

    Unusable images are left out. `findings` collects the reports on all images. A progress bar appears after 2 seconds.
    """

    def decode(index: int) -> Tuple[ImageReport, Optional[np.ndarray]]:
        report, picture = inspect_image(split, index, view)
        return report, None if picture is None else np.asarray(picture)

    with ThreadPoolExecutor(max(1, num_workers)) as pool, tqdm(
        total=len(indices), desc="reading images", unit="image", delay=2, disable=None, leave=False
    ) as bar:
        for start in range(0, len(indices), CHUNK):
            part = indices[start : start + CHUNK]
            found = list(pool.map(decode, part))
            for index, (report, _) in zip(part, found):
                findings.add(index, report)
            images = [image for _, image in found if image is not None]
            if images:
                yield np.stack(images)
            bar.update(len(part))


def decode_all(split: ImageSplit, view: View, num_workers: int, corrupt: str, role: str) -> ArraySplit:
    """Decode a split into memory, without the images that cannot be used; see `usable_indices`."""
    if isinstance(split, ArraySplit) and split.images.shape[1:3] == (view.size, view.size) and not view.margin:
        return split
    try:
        images = np.empty((len(split), view.size, view.size, 3), dtype=np.uint8)
    except MemoryError as error:
        raise UserError(f"{len(split)} images do not fit in memory ({error}); set DATASET.IN_MEMORY no") from None
    done = 0
    findings = SplitReport()
    for chunk in decode_chunks(split, view, range(len(split)), num_workers, findings):
        images[done : done + len(chunk)] = chunk
        done += len(chunk)
    kept = usable_indices(split, findings, corrupt, role)
    return ArraySplit(images[:done], split.targets[kept])
