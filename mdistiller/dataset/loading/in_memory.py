"""Decode a whole split into memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from ...errors import UserError
from .decode import View
from .image_check import Findings, Sight, inspect, usable
from .splits import ArraySplit, ImageSplit

CHUNK = 1024  # images


def decode_chunks(
    split: ImageSplit, view: View, indices: Sequence[int], num_workers: int, findings: Findings
) -> Iterator[np.ndarray]:
    """Yield the images `indices` as uint8 [n, S, S, 3], n ≤ 1024; decoded by threads, with a bar if it takes long.

    Those that cannot be used are left out; `findings` takes in what they and the others are.
    """

    def decode(index: int) -> Tuple[Sight, Optional[np.ndarray]]:
        sight, picture = inspect(split, index, view)
        return sight, None if picture is None else np.asarray(picture)

    with ThreadPoolExecutor(max(1, num_workers)) as pool, tqdm(
        total=len(indices), desc="reading images", unit="image", delay=2, disable=None, leave=False
    ) as bar:
        for start in range(0, len(indices), CHUNK):
            part = indices[start : start + CHUNK]
            found = list(pool.map(decode, part))
            for index, (sight, _) in zip(part, found):
                findings.add(index, sight)
            images = [image for _, image in found if image is not None]
            if images:
                yield np.stack(images)
            bar.update(len(part))


def decode_all(split: ImageSplit, view: View, num_workers: int, corrupt: str, role: str) -> ArraySplit:
    """Return the split in memory, as the model sees it, without the pictures that cannot be used; see `usable`."""
    if isinstance(split, ArraySplit) and split.images.shape[1:3] == (view.size, view.size) and not view.margin:
        return split
    try:
        images = np.empty((len(split), view.size, view.size, 3), dtype=np.uint8)
    except MemoryError as error:
        raise UserError(f"{len(split)} images do not fit in memory ({error}); set DATASET.IN_MEMORY no") from None
    done = 0
    findings = Findings()
    for chunk in decode_chunks(split, view, range(len(split)), num_workers, findings):
        images[done : done + len(chunk)] = chunk
        done += len(chunk)
    kept = usable(split, findings, corrupt, role)
    return ArraySplit(images[:done], split.targets[kept])
