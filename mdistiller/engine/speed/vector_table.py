"""Tables of vectors by row number, in memory or in a file.

Shapes: `R` rows, `V` values a row, `n` rows at hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class MemoryTable:
    """Rows on the device of the teacher, for this run.

    Args:
        rows, values: `R` and `V`.
        dtype: of what is stored.
        device: where.

    Attributes:
        damaged: rows that were known, but not intact.
    """

    damaged = 0

    def __init__(self, rows: int, values: int, dtype: torch.dtype, device: torch.device) -> None:
        self._vectors = torch.empty(rows, values, dtype=dtype, device=device)
        self._known = torch.zeros(rows, dtype=torch.bool)

    def missing(self, keys: Tensor) -> Tensor:
        """Return which of the rows `keys` (int64 [n], on the CPU) are not known yet, bool [n]."""
        return ~self._known[keys]

    def write(self, keys: Tensor, vectors: Tensor) -> None:
        """Take the rows `keys` (int64 [n], on the CPU) from `vectors [n, V]`."""
        self._vectors[keys.to(self._vectors.device)] = vectors.to(self._vectors.dtype)
        self._known[keys] = True

    def read(self, keys: Tensor) -> Tensor:
        """Return the rows `keys` (int64 [n], on the CPU), all known, as float32 [n, V] on the device."""
        return self._vectors.index_select(0, keys.to(self._vectors.device, non_blocking=True)).float()

    def filled(self) -> float:
        """Return the part of the rows that is known, in [0, 1]."""
        return float(self._known.float().mean())


class FileTable:
    """Rows in a memory-mapped file, for this run and later ones, and a checksum for each.

    A checksum is compared whenever its row is asked for: what a broken disk, or a machine that stopped between two
    writes, left wrong counts as not known. Several processes may use a file at a time; they write the same values.

    Args:
        folder: with the two files, of the right size; of zeros where nothing is known.
        rows, values, dtype: as for `MemoryTable`.
        device: where `read` puts its result.

    Attributes:
        damaged: see `MemoryTable`.
    """

    VECTORS, CHECKSUMS = "vectors.bin", "checksums.bin"

    def __init__(self, folder: Path, rows: int, values: int, dtype: torch.dtype, device: torch.device) -> None:
        self.damaged = 0
        self._device = device
        kind = {torch.float16: np.float16, torch.float32: np.float32}[dtype]
        self._vectors = np.memmap(folder / self.VECTORS, dtype=kind, mode="r+", shape=(rows, values))
        self._checks = np.memmap(folder / self.CHECKSUMS, dtype=np.uint32, mode="r+", shape=(rows,))  # 0: not known
        words = self._vectors.dtype.itemsize * values // 2
        # of the words, modulo the odd 2^32 - 1: no weight is 0 there, so a bit that flips changes the sum
        self._weights = np.random.Generator(np.random.PCG64(0)).integers(1, 2**31, size=words, dtype=np.uint64)

    def missing(self, keys: Tensor) -> Tensor:
        """See `MemoryTable`."""
        rows = keys.numpy()
        given = self._checks[rows]
        known = given != 0
        intact = known & (given == self._sums(self._vectors[rows]))
        self.damaged += int(known.sum() - intact.sum())
        return torch.from_numpy(~intact)

    def write(self, keys: Tensor, vectors: Tensor) -> None:
        """See `MemoryTable`."""
        rows = keys.numpy()
        values = vectors.cpu().numpy().astype(self._vectors.dtype)
        self._vectors[rows] = values
        self._checks[rows] = self._sums(values)

    def read(self, keys: Tensor) -> Tensor:
        """See `MemoryTable`."""
        vectors = torch.from_numpy(self._vectors[keys.numpy()])
        if self._device.type == "cuda":
            vectors = vectors.pin_memory()
        return vectors.to(self._device, non_blocking=True).float()

    def filled(self) -> float:
        """See `MemoryTable`."""
        return float(np.count_nonzero(self._checks)) / len(self._checks)

    def _sums(self, vectors: np.ndarray) -> np.ndarray:
        words = np.ascontiguousarray(vectors).view(np.uint16).astype(np.uint64)
        return (words @ self._weights % (2**32 - 1) + 1).astype(np.uint32)
