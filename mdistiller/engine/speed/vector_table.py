"""Tables of vectors by row number, in memory or in a file.

Shapes: `R` rows, `V` values per row, `n` rows of one call.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class MemoryTable:
    """A table in the memory of the teacher's device, for this run.

    Args:
        rows, values: the number of rows, `R`, and the number of values per row, `V`.
        dtype: the data type of the stored values.
        device: the device of the stored values.

    Attributes:
        damaged: the number of rows that were written, but are not intact.
    """

    damaged = 0

    def __init__(self, rows: int, values: int, dtype: torch.dtype, device: torch.device) -> None:
        self._vectors = torch.empty(rows, values, dtype=dtype, device=device)
        self._written = torch.zeros(rows, dtype=torch.bool)

    def missing(self, keys: Tensor) -> Tensor:
        """Return which of the rows `keys` (int64 [n], on the CPU) must be written first, bool [n]."""
        return ~self._written[keys]

    def write(self, keys: Tensor, vectors: Tensor) -> None:
        """Write `vectors [n, V]` to the rows `keys` (int64 [n], on the CPU)."""
        self._vectors[keys.to(self._vectors.device)] = vectors.to(self._vectors.dtype)
        self._written[keys] = True

    def read(self, keys: Tensor) -> Tensor:
        """Return the rows `keys` (int64 [n], on the CPU), which were all written, as float32 [n, V] on the device."""
        return self._vectors.index_select(0, keys.to(self._vectors.device, non_blocking=True)).float()

    def filled(self) -> float:
        """Return the fraction of the rows that were written, in [0, 1]."""
        return float(self._written.float().mean())


class FileTable:
    """A table in a memory-mapped file, for this run and later ones, with a checksum for each row.

    `missing` compares the checksums. A row that a broken disk or a crash between two writes has damaged counts as
    missing. Several processes may use the same file at once, because they write the same values.

    Args:
        folder: the folder with the two files, which have the right sizes. Rows that were never written are zeros.
        rows, values, dtype: the size of the table and the data type of its values, as for `MemoryTable`.
        device: the device of the vectors that `read` returns.

    Attributes:
        damaged: see `MemoryTable`.
    """

    VECTORS, CHECKSUMS = "vectors.bin", "checksums.bin"

    def __init__(self, folder: Path, rows: int, values: int, dtype: torch.dtype, device: torch.device) -> None:
        self.damaged = 0
        self._device = device
        kind = {torch.float16: np.float16, torch.float32: np.float32}[dtype]
        self._vectors = np.memmap(folder / self.VECTORS, dtype=kind, mode="r+", shape=(rows, values))
        self._checksums = np.memmap(
            folder / self.CHECKSUMS, dtype=np.uint32, mode="r+", shape=(rows,)
        )  # 0: not written
        words = self._vectors.dtype.itemsize * values // 2
        # a checksum is a weighted sum of 16-bit words modulo 2^32 - 1; that is odd, and no weight is 0 modulo it, so a
        # flipped bit always changes the sum
        self._weights = np.random.Generator(np.random.PCG64(0)).integers(1, 2**31, size=words, dtype=np.uint64)

    def missing(self, keys: Tensor) -> Tensor:
        """See `MemoryTable`."""
        rows = keys.numpy()
        stored = self._checksums[rows]
        written = stored != 0
        intact = written & (stored == self._checksums_of(self._vectors[rows]))
        self.damaged += int(written.sum() - intact.sum())
        return torch.from_numpy(~intact)

    def write(self, keys: Tensor, vectors: Tensor) -> None:
        """See `MemoryTable`."""
        rows = keys.numpy()
        values = vectors.cpu().numpy().astype(self._vectors.dtype)
        self._vectors[rows] = values
        self._checksums[rows] = self._checksums_of(values)

    def read(self, keys: Tensor) -> Tensor:
        """See `MemoryTable`."""
        vectors = torch.from_numpy(self._vectors[keys.numpy()])
        if self._device.type == "cuda":
            vectors = vectors.pin_memory()
        return vectors.to(self._device, non_blocking=True).float()

    def filled(self) -> float:
        """See `MemoryTable`."""
        return float(np.count_nonzero(self._checksums)) / len(self._checksums)

    def _checksums_of(self, vectors: np.ndarray) -> np.ndarray:
        words = np.ascontiguousarray(vectors).view(np.uint16).astype(np.uint64)
        return (words @ self._weights % (2**32 - 1) + 1).astype(np.uint32)
