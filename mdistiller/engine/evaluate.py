"""Top-1 and top-5 accuracy over a whole data set, summed on the device."""

from __future__ import annotations

from typing import Any, Callable, Dict

import torch
from torch import Tensor

from .. import distributed


def count_correct(logits: Tensor, target: Tensor) -> Tensor:
    """Return `[2]`, int64: how many of the `B` targets are the first, and among the first five, of `logits [B, N]`."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = top == target[:, None]
    return torch.stack([hits[:, :1].sum(), hits.sum()])


def evaluate(
    forward: Callable[[Tensor], Dict[str, Tensor]], loader: Any, check: Callable[[], None] = lambda: None
) -> Dict[str, float]:
    """Return `{name_top1, name_top5}` in percent, to two decimals, for each of the named logits of `forward(image)`.

    Runs without autocast whatever the training's precision, so that a student is judged by its own weights. Several
    processes count the batches that their loaders give them, and return the same.

    Args:
        check: called before each batch, by all processes equally often; what it raises ends the evaluation.
    """
    correct: Dict[str, Tensor] = {}
    batches = iter(loader)
    for _ in range(-(-len(loader) // distributed.get_world_size())):
        check()
        batch = next(batches, None)
        if batch is None:  # the last ones are not dealt to every process
            continue
        with torch.inference_mode():  # not around what the processes say to each other, which PyTorch 2.4 refuses
            for name, logits in forward(batch["image"]).items():
                hits = count_correct(logits, batch["target"])
                correct[name] = correct[name] + hits if name in correct else hits
    # one that was dealt no batch has no names
    parts = distributed.all_gather({name: hits.tolist() for name, hits in correct.items()})
    return {
        f"{name}_top{k}": round(100 * sum(part[name][i] for part in parts if part) / loader.num_images, 2)
        for name in parts[0]
        for i, k in enumerate((1, 5))
    }
