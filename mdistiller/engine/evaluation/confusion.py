"""The confusion matrix of a classifier on a data set."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import List, Optional, Sequence

import torch
from torch import Tensor

from ...atomic_files import replace_text


class Confusion:
    """Counts the predictions for the images of each class.

    Args:
        num_classes: the number of classes, `K`.

    Attributes:
        counts: the confusion matrix, int64 `[K, K]`: `counts[i, j]` images of class `i` were taken for class `j`.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch: `logits` `[B, K]`, `target` int64 `[B]`."""
        size = len(self.counts)
        guess = logits.topk(min(5, size), dim=1).indices[:, 0]  # as top-1 is counted, also where logits are equal
        self.counts += torch.bincount(target * size + guess, minlength=size * size).view(size, size).cpu()

    def per_class(self) -> List[Optional[float]]:
        """Return the top-1 of each class in percent, to two decimals; `None` for a class without images."""
        rows = zip(self.counts.diag().tolist(), self.counts.sum(1).tolist())
        return [round(100 * right / total, 2) if total else None for right, total in rows]

    def write(self, path: Path, classes: Sequence[str]) -> None:
        """Write a CSV table with a row for each class: its images, its top-1 in percent, and its row of `counts`.

        Raises:
            UserError: the file cannot be written.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["class", "images", "top1", *(f"taken for {name}" for name in classes)])
        for name, row, top1 in zip(classes, self.counts.tolist(), self.per_class()):
            writer.writerow([name, sum(row), "" if top1 is None else f"{top1:.2f}", *row])
        replace_text(path, table.getvalue())
