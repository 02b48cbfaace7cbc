"""Mean and standard deviation of a folder of images: measured once, then cached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Tuple

import numpy as np

from ... import paths
from ..options import Channels

MAX_VALUES = 10_000_000  # per call of bincount, which converts each to 8 bytes

log = logging.getLogger("mdistiller")


def measure(chunks: Iterable[np.ndarray]) -> Tuple[Channels, Channels]:
    """Return `(mean, std)` over all pixels of images uint8 [n, S, S, 3], scaled to [0, 1], rounded to 4 decimals.

    A constant channel gets a deviation of 1, so that division is possible.
    """
    histogram = np.zeros((3, 256), dtype=np.int64)
    for chunk in chunks:
        for images in np.array_split(chunk, 1 + chunk.size // MAX_VALUES):
            for channel in range(3):
                histogram[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
    share = histogram / np.maximum(histogram.sum(axis=1, keepdims=True), 1)
    levels = np.arange(256) / 255
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    return _rounded(mean), _rounded(np.where(std < 5e-5, 1.0, std))


def _rounded(values: Iterable[float]) -> Channels:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue


def fingerprint(files: Iterable[Tuple[Path, str]], folder: Path) -> str:
    """Return a digest of file names below `folder`, sizes and modification times; see `EncodedSplit.stamped_paths`."""
    digest = hashlib.blake2b(digest_size=16)
    start = f"{folder}{os.sep}"
    for path, stamp in files:
        name = str(path)[len(start) :] if str(path).startswith(start) else str(path)
        digest.update(f"{name}\0{stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class FolderCache:
    """Cached findings about the images of a folder: a small JSON file in the cache folder.

    Args:
        folder: the folder that contains the images.
        settings: everything besides the files that the findings depend on, as text.
        files: the images, with sizes and modification times; see `EncodedSplit.stamped_paths`.
    """

    def __init__(self, folder: Path, settings: str, files: Iterable[Tuple[Path, str]]) -> None:
        self.key = {"folder": str(folder.resolve()), "settings": settings, "fingerprint": fingerprint(files, folder)}
        place = f"{self.key['folder']}\0{settings}".encode("utf-8", "surrogateescape")
        name = hashlib.blake2b(place, digest_size=12).hexdigest()
        self.file = paths.cache_root() / "statistics" / f"{name}.json"

    def load(self, *names: str) -> Optional[Dict[str, Any]]:
        """Return the cached values of these names, or `None` if one is missing or the folder has changed."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            if any(found[key] != value for key, value in self.key.items()):
                return None
            return {name: found[name] for name in names}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def load_statistics(self) -> Optional[Tuple[Channels, Channels]]:
        """Return the cached `(mean, std)`, or `None`."""
        found = self.load("mean", "std")
        try:
            return None if found is None else (_rounded(found["mean"]), _rounded(found["std"]))
        except (ValueError, TypeError):
            return None

    def save(self, **found: Any) -> None:
        """Write values to the cache; warn if that fails."""
        part = self.file.with_suffix(f".{os.getpid()}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({**self.key, **found}, indent=1) + "\n", encoding="utf-8")
            os.replace(part, self.file)
        except OSError as error:
            log.warning("cannot write the cache %s (%s); the next run will read the images again", self.file, error)
