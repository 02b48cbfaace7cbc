"""Gradient accumulation (`SOLVER.ACCUMULATE`): a step is computed in micro-batches, to save memory.

Shapes: `B` images of this process in a step, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

import torch
from torch import Tensor

from ... import distributed
from ...dataset import Batch


class MicroBatch(NamedTuple):
    """A micro-batch: some of the images of a batch.

    Attributes:
        batch: the entries of its images.
        rows: the positions of these images in the whole batch.
    """

    batch: Batch
    rows: slice


def split_batch(batch: Batch, number: int, num_images: int) -> List[MicroBatch]:
    """Divide a batch into micro-batches of almost equal size; there are fewer if one would have a single image.

    Image `i` of a step goes to micro-batch `i mod number`. So a micro-batch has the same images in one process and in
    several.

    Args:
        batch: the batch, whose entries hold `B` images each.
        number: the largest number of micro-batches.
        num_images: the number of images of all processes in this step.
    """
    number = min(number, num_images // distributed.get_world_size() // 2)  # BatchNorm needs two images
    if number <= 1:
        return [MicroBatch(batch, slice(None))]
    first = distributed.local_slice(slice(0, num_images)).start
    all_rows = [slice((place - first) % number, None, number) for place in range(number)]
    return [MicroBatch({key: _rows_of(value, rows) for key, value in batch.items()}, rows) for rows in all_rows]


def _rows_of(entry: Any, rows: slice) -> Any:
    if isinstance(entry, (list, tuple)):  # views of the same images
        return [_rows_of(view, rows) for view in entry]
    layout = torch.channels_last if entry.ndim == 4 and entry.stride(1) == 1 else torch.contiguous_format
    return entry[rows].contiguous(memory_format=layout)


def join_outputs(
    micro_batches: Iterable[Tuple[MicroBatch, Dict[str, Tensor], Tensor]],
) -> Tuple[Dict[str, Tensor], Tensor]:
    """Return the losses of a whole batch, as means over its images, and the logits `[B, N]` in its order.

    Args:
        micro_batches: those of the batch, each with its losses, scalars by name, and its logits.
    """
    outputs = list(micro_batches)
    if len(outputs) == 1:
        return outputs[0][1:]
    size = sum(len(logits) for *_, logits in outputs)
    losses = {
        name: torch.stack([one[name] * (len(logits) / size) for _, one, logits in outputs]).sum()
        for name in outputs[0][1]
    }
    whole = outputs[0][2].new_empty(size, outputs[0][2].shape[1])
    for micro_batch, _, logits in outputs:
        whole[micro_batch.rows] = logits
    return losses, whole
