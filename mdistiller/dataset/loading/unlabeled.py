"""Images without labels, which training batches get besides the labeled ones (`DATASET.UNLABELED`).

Shapes: `L` labeled images of this process in a batch, `U` images without labels, `N` classes.
"""

from __future__ import annotations

import torch

from ..augment.mixing import Batch

NO_LABEL = -1


def with_unlabeled(batch: Batch, more: Batch, num_labeled: int, weight: float) -> Batch:
    """Return a batch of labeled images followed by images without labels, `L + U` entries.

    `target` is −1 where there is no label. "label_weight" is 0 there, and `weight` for the others. The mean
    of `loss · label_weight` over the batch is the mean loss of the labeled images.

    Args:
        batch: a batch of `L` labeled images.
        more: a batch of `U` images of the other set, whose labels are ignored.
        num_labeled: the number of images in the labeled set; "index" goes on after it.
        weight: the number of images in this step over all processes, divided by that of labeled ones.
    """
    target, index = batch["target"], batch["index"]
    unknown = {"target": torch.full_like(more["target"], NO_LABEL), "index": more["index"] + num_labeled}
    joined = {key: torch.cat([value, {**more, **unknown}[key]]) for key, value in batch.items()}
    joined["label_weight"] = torch.cat(
        [torch.full(target.shape, weight, device=index.device), torch.zeros(more["target"].shape, device=index.device)]
    )
    return joined
