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

KEYS = ("DATASET.MIXUP", "DATASET.CUTMIX", "SOLVER.LABEL_SMOOTHING")


def with_soft_labels(batch: Batch, smoothing: float, num_classes: int) -> Batch:
    """Return a batch as a distiller gets it: `target` are labels `[B]`, or probabilities `[B, N]` where they are soft.

    Args:
        batch: its `soft_target [B, N]`, if any, replaces the labels.
        smoothing: share of the probability that is divided among all classes.
        num_classes: `N`.
    """
    if smoothing == 0 and "soft_target" not in batch:
        return batch
    rest = {key: value for key, value in batch.items() if key != "soft_target"}
    soft = batch["soft_target"] if "soft_target" in batch else F.one_hot(batch["target"], num_classes).float()
    return {**rest, "target": soft if smoothing == 0 else soft * (1 - smoothing) + smoothing / num_classes}


def soft_label_errors(cfg: CfgNode, distiller: Type[Distiller]) -> Iterator[str]:
    """Yield a line if the settings give labels as probabilities, and the method does not take them."""
    values: Dict[str, Any] = {key: cfg[key.split(".")[0]][key.split(".")[1]] for key in KEYS}
    given = [f"{key} {value}" for key, value in values.items() if value]
    if given and not distiller.soft_labels:
        able = sorted(name for name, other in distiller_dict.items() if other.soft_labels)
        yield (
            f"{', '.join(given)}: labels are then probabilities, but DISTILLER.TYPE {cfg.DISTILLER.TYPE} is not known"
            f" to take them; set it to 0, or use one of {', '.join(able)}"
        )
