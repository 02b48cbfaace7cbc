"""Labels as probabilities: of mixed images, and smoothed (`SOLVER.LABEL_SMOOTHING`).

Source of label smoothing: "Rethinking the Inception Architecture for Computer Vision" (2016).

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Type

import torch.nn.functional as F
from yacs.config import CfgNode

from ...dataset import Batch
from ...distillers import Distiller, distiller_dict
from ...errors import listed

KEYS = ("DATASET.MIXUP", "DATASET.CUTMIX", "SOLVER.LABEL_SMOOTHING")
SOFT = ("soft_target", "label_weight")  # entries of a batch


def with_soft_labels(batch: Batch, smoothing: float, num_classes: int) -> Batch:
    """Return a batch as a distiller gets it: `target` are labels `[B]`, or probabilities `[B, N]` where they are soft.

    If some images have no label, `target` are probabilities times weights: zeros for these images, so that they have no
    part in a cross-entropy, and for the others a weight that makes up for that in an average over the batch.

    Args:
        batch: the batch. `soft_target [B, N]`, if any, replaces the labels; `label_weight [B]`, if any, is applied.
        smoothing: the share of the probability that is divided among all classes.
        num_classes: the number of classes, `N`.
    """
    if smoothing == 0 and not set(SOFT) & set(batch):
        return batch
    rest = {key: value for key, value in batch.items() if key not in SOFT}
    labels = batch["target"].clamp(min=0)  # −1 where there is no label
    soft = batch["soft_target"] if "soft_target" in batch else F.one_hot(labels, num_classes).float()
    soft = soft if smoothing == 0 else soft * (1 - smoothing) + smoothing / num_classes
    return {**rest, "target": soft * batch["label_weight"][:, None] if "label_weight" in batch else soft}


def soft_label_errors(cfg: CfgNode, distiller: Type[Distiller]) -> Iterator[str]:
    """Yield a line if the settings give labels as probabilities, and the method does not take them."""
    values: Dict[str, Any] = {key: cfg[key.split(".")[0]][key.split(".")[1]] for key in KEYS}
    given = [f"{key} {value}" for key, value in values.items() if value]
    if given and not distiller.soft_labels:
        able = sorted(name for name, other in distiller_dict.items() if other.soft_labels)
        yield (
            f"{', '.join(given)}: labels are then probabilities, but DISTILLER.TYPE {cfg.DISTILLER.TYPE} is not known"
            f" to take them; set it to 0, or use another method, such as {listed(able, 3)}"
        )


def unlabeled_errors(cfg: CfgNode, distiller: Type[Distiller]) -> Iterator[str]:
    """Yield a line for each setting that cannot be combined with images without labels."""
    folder, method = cfg.DATASET.UNLABELED, cfg.DISTILLER.TYPE
    if folder and not distiller.unlabeled:
        able = sorted(name for name, other in distiller_dict.items() if other.unlabeled)
        yield (
            f"DATASET.UNLABELED {folder}: DISTILLER.TYPE {method} needs a label for each image; leave UNLABELED out, or"
            f" use another method, such as {listed(able, 3)}"
        )
    if folder and cfg.SOLVER.ACCUMULATE > 1:
        yield (
            f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE} cannot be combined with DATASET.UNLABELED; set it to 1, with a"
            " smaller SOLVER.BATCH_SIZE or DATASET.UNLABELED_RATIO"
        )
