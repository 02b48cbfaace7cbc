"""Images in shards as a split with random access, and the check of the shards' checksums."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...download import sha256_of
from ...errors import UserError
from ..images.stats import FolderCache
from ..loading.encoded import EncodedSplit, as_names
from ..loading.splits import stat_of
from .index import Shard

log = logging.getLogger("mdistiller")


class ShardSplit(EncodedSplit):
    """Images that are read from tar files on access. Each read opens the tar file, so workers share no position in it.

    Args:
        shards: the M paths of the shards, or an array of their names.
        checksums: the checksums of the shards, hexadecimal.
        names: the N names of the pictures in the shards.
        places: the number of the shard, the offset and the size in bytes of each picture, int64 [N, 3].
        targets: the labels, int64 [N].
    """

    def __init__(
        self, shards: Any, checksums: Sequence[str], names: np.ndarray, places: np.ndarray, targets: Tensor
    ) -> None:
        self._shards = as_names(shards)
        self._checksums = checksums
        self._names = names
        self._places = places
        self.targets = targets

    @classmethod
    def of(cls, folder: Path, shards: Sequence[Shard]) -> ShardSplit:
        """Return all images of shards in `folder`."""
        numbers = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        offsets, sizes, labels = (
            np.concatenate([getattr(shard, key) for shard in shards]) for key in ("offsets", "sizes", "labels")
        )
        return cls(
            [folder / shard.file for shard in shards],
            [shard.sha256 for shard in shards],
            as_names([name for shard in shards for name in shard.names]),
            np.stack([numbers, offsets, sizes], axis=1),
            torch.from_numpy(labels),
        )

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self._shards[self._places[index, 0]]), os.fsdecode(self._names[index]))

    @cached_property
    def stats(self) -> np.ndarray:
        times = np.array([stat_of(shard)[1] for shard in self._shards.tolist()], dtype=np.int64)[self._places[:, 0]]
        return np.stack([np.where(times < 0, -1, self._places[:, 2]), times], axis=1)

    def open(self, index: int) -> io.BytesIO:
        number, offset, size = self._places[index].tolist()
        with open(self._shards[number], "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError("the shard ends before it")
        return io.BytesIO(content)

    def fingerprint(self) -> Tuple[str, str]:
        state = hashlib.sha256("".join(self._checksums).encode())
        state.update(np.ascontiguousarray(self._places).data)
        return "shards", state.hexdigest()

    def subset(self, indices: Tensor) -> ShardSplit:
        rows = indices.numpy()
        return ShardSplit(self._shards, self._checksums, self._names[rows], self._places[rows], self.targets[indices])


def check_shards(folder: Path, shards: Sequence[Shard], corrupt: str, num_workers: int) -> None:
    """Compare size and checksum of shards with the index, in threads; log or refuse those that differ.

    The result is cached until a shard changes.

    Args:
        folder: the folder that contains the shards.
        shards: the shards as the index describes them.
        corrupt: how to treat shards that differ: "refuse"; "skip" to go on with the images that can be read;
            "unchecked" to read nothing.
        num_workers: the number of threads.

    Raises:
        UserError: a shard is missing, or differs and `corrupt` is "refuse".
    """
    stamps = []
    for shard in shards:
        try:
            found = os.stat(folder / shard.file)
        except OSError as error:
            raise UserError(
                f"the shard {folder / shard.file} cannot be read ({error.strerror}); copy it there, or make the shards"
                " again with tools/make_shards.py"
            ) from None
        stamps.append((folder / shard.file, f"{found.st_size}\0{found.st_mtime_ns}\0{shard.sha256}"))
    if corrupt == "unchecked":
        return
    cache = FolderCache(folder, f"checksums {shards[0].file}", stamps)
    if cache.load("intact"):
        return
    damaged = _damaged(folder, shards, num_workers)
    if not damaged:
        cache.save(intact=True)
        return
    first = f"the shard {damaged[0]}" if len(damaged) == 1 else f"{len(damaged)} shards, first {damaged[0]}"
    if corrupt != "skip":
        raise UserError(
            f"{first}: it does not match the index; copy it again, or make the index again with tools/make_shards.py"
            " --index, or use the images that can be read with DATASET.CORRUPT skip"
        )
    log.warning("%s: it does not match the index; its images are used as far as they can be read", first)


def _damaged(folder: Path, shards: Sequence[Shard], num_workers: int) -> List[str]:
    def fault(shard: Shard) -> str:
        path = folder / shard.file
        try:
            size = path.stat().st_size
            if size != shard.bytes:
                return f"{path} has {size} bytes instead of {shard.bytes}"
            return "" if sha256_of(path) == shard.sha256 else f"{path} has another checksum"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        faults = pool.map(fault, shards)
        bar = tqdm(faults, desc="checking shards", unit="shard", total=len(shards), delay=2, disable=None, leave=False)
        return [found for found in bar if found]
