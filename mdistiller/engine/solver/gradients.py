"""Gradients of a step that are computed in parts (`SOLVER.ACCUMULATE`), to save memory.

Shapes: `B` images of this process in a step, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

import torch
from torch import Tensor

from ... import distributed
from ...dataset import Batch


class Part(NamedTuple):
    """A part of a batch.

    Attributes:
        batch: the entries of the images in this part.
        rows: the positions of these images in the whole batch.
    """

    batch: Batch
    rows: slice


def split_batch(batch: Batch, num_parts: int, num_images: int) -> List[Part]:
    """Divide a batch into parts of equal size, or almost; there are fewer if a part would have a single image.

    Image `i` of a step goes to part `i mod num_parts`. So a part has the same images in one process and in several.

    Args:
        batch: the batch, whose entries hold `B` images each.
        num_parts: the largest number of parts.
        num_images: the number of images of all processes in this step.
    """
    num_parts = min(num_parts, num_images // distributed.get_world_size() // 2)  # BatchNorm needs two images
    if num_parts <= 1:
        return [Part(batch, slice(None))]
    first = distributed.local_slice(slice(0, num_images)).start
    rows = [slice((number - first) % num_parts, None, num_parts) for number in range(num_parts)]
    return [Part({key: _rows_of(value, part) for key, value in batch.items()}, part) for part in rows]


def _rows_of(entry: Any, rows: slice) -> Any:
    if isinstance(entry, (list, tuple)):  # views of the same images
        return [_rows_of(view, rows) for view in entry]
    layout = torch.channels_last if entry.ndim == 4 and entry.stride(1) == 1 else torch.contiguous_format
    return entry[rows].contiguous(memory_format=layout)


def join_outputs(parts: Iterable[Tuple[Part, Dict[str, Tensor], Tensor]]) -> Tuple[Dict[str, Tensor], Tensor]:
    """Return the losses of a whole batch, as means over its images, and the logits `[B, N]` in its order.

    Args:
        parts: the parts of the batch, each with its losses, scalars by name, and its logits.
    """
    parts = list(parts)
    if len(parts) == 1:
        return parts[0][1:]
    size = sum(len(logits) for *_, logits in parts)
    losses = {
        name: torch.stack([of_part[name] * (len(logits) / size) for _, of_part, logits in parts]).sum()
        for name in parts[0][1]
    }
    whole = parts[0][2].new_empty(size, parts[0][2].shape[1])
    for part, _, logits in parts:
        whole[part.rows] = logits
    return losses, whole
