"""Top-1 and top-5 accuracy over a whole data set, summed on the device."""

from __future__ import annotations

from typing import Any, Callable, Dict

import torch
from torch import Tensor

from ... import distributed


def count_correct(logits: Tensor, target: Tensor) -> Tensor:
    """Return int64 `[2]`: the number of targets `[B]` that are top-1, and top-5, of `logits` `[B, N]`."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = top == target[:, None]
    return torch.stack([hits[:, :1].sum(), hits.sum()])


def evaluate(
    forward: Callable[[Tensor], Dict[str, Tensor]],
    loader: Any,
    check: Callable[[], None] = lambda: None,
    observe: Callable[[Tensor, Tensor], None] = lambda logits, target: None,
) -> Dict[str, float]:
    """Return `{name}_top1` and `{name}_top5` in percent, to two decimals, for each of the named logits.

    Runs without autocast whatever the precision of the training, so that the saved weights are evaluated: in float32,
    on a GPU with convolutions in TF32. In a process group each process counts its own batches; all return the same
    totals.

    Args:
        forward: a function that takes images `[B, 3, H, W]` to logits `[B, N]` by name.
        loader: the loader of the validation set.
        check: a function that is called before each batch, equally often in all processes; an exception ends the
            evaluation.
        observe: a function that is called with the logits `deployed` `[B, N]` and the labels `[B]` of each batch of
            this process.
    """
    correct: Dict[str, Tensor] = {}
    batches = iter(loader)
    for _ in range(-(-len(loader) // distributed.get_world_size())):
        check()
        batch = next(batches, None)
        if batch is None:  # the last batches do not reach every process
            continue
        with torch.inference_mode():  # PyTorch 2.4 does not allow collectives within it
            outputs = forward(batch["image"])
            if "deployed" in outputs:
                observe(outputs["deployed"], batch["target"])
            for name, logits in outputs.items():
                hits = count_correct(logits, batch["target"])
                correct[name] = correct[name] + hits if name in correct else hits
    # a process without a batch has no names
    parts = distributed.all_gather({name: hits.tolist() for name, hits in correct.items()})
    return {
        f"{name}_top{k}": round(100 * sum(part[name][i] for part in parts if part) / loader.num_images, 2)
        for name in parts[0]
        for i, k in enumerate((1, 5))
    }
