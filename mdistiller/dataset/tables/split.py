"""Rows of a table of the `datasets` library as a split with random access."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, Optional, Tuple, Union

import numpy as np
from torch import Tensor

from ..loading.encoded import EncodedSplit
from ..loading.splits import stat_of


class TableSplit(EncodedSplit):
    """Images in the rows of a table.

    Args:
        table: a `datasets.Dataset` whose column `column` has the feature `Image(decode=False)`.
        column: the name of the column with the images.
        targets: the labels of the rows, int64 [N].
        name: the name of the table, such as its folder and its part, given in error messages.
        root: the folder to which paths in the column are relative.
        rows: the rows of the table to use, int64 [N]; by default all.
        stats: see `EncodedSplit`; by default read from the table.
    """

    def __init__(
        self,
        table: Any,
        column: str,
        targets: Tensor,
        name: Path,
        root: Path,
        rows: Optional[np.ndarray] = None,
        stats: Optional[np.ndarray] = None,
    ) -> None:
        self._table = table
        self._column = column
        self.targets = targets
        self._name = name
        self._root = root
        self._rows = np.arange(len(table)) if rows is None else rows
        self.stats = _stats(table, column, root) if stats is None else stats

    def path(self, index: int) -> Path:
        return self._name / f"row {self._rows[index]}"

    def open(self, index: int) -> Union[Path, BinaryIO]:
        cell = self._table[int(self._rows[index])][self._column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise OSError("the row has no image")
        if cell["bytes"] is not None:
            return io.BytesIO(cell["bytes"])
        path = self._root / cell["path"]
        if not path.is_file():
            raise OSError(f"the file {path} is missing")
        return path

    def fingerprint(self) -> Tuple[str, str]:
        return "image sizes", hashlib.sha256(np.ascontiguousarray(self.stats[:, 0]).data).hexdigest()

    def subset(self, indices: Tensor) -> TableSplit:
        chosen = indices.numpy()
        of_images = self._rows[chosen], self.stats[chosen]
        return TableSplit(self._table, self._column, self.targets[indices], self._name, self._root, *of_images)


def _stats(table: Any, column: str, root: Path) -> np.ndarray:
    """Return sizes of the images in bytes, −1 for missing ones, and times of the Arrow files or of their own files."""
    from pyarrow import compute

    cells = table.data.column(column)
    lengths = compute.binary_length(compute.struct_field(cells, "bytes"))
    sizes = lengths.fill_null(-1).to_numpy().astype(np.int64)
    files = [file["filename"] for file in table.cache_files]
    time = max((os.stat(file).st_mtime_ns for file in files), default=0)
    stats = np.stack([sizes, np.full_like(sizes, time)], axis=1)
    for row in np.flatnonzero(sizes < 0).tolist():
        name = cells[row]["path"].as_py() if cells[row].is_valid else None
        if name:
            stats[row] = stat_of(os.fsencode(root / name))
    return stats
