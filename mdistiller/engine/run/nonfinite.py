"""A loss that became NaN or infinite, and the file that is written about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

import torch

from ... import distributed
from ...errors import UserError
from .. import checkpoint


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite, or float16's gradients are infinite however small the losses are scaled.

    Attributes:
        evidence: the description of the step; see `save_evidence`.
    """

    def __init__(self, message: str, evidence: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(message)
        self.evidence = evidence or {}


def save_evidence(error: NonFiniteLoss, state: Dict[str, Any], path: Path) -> NonFiniteLoss:
    """Write the state at a non-finite loss to `path`; return the error with the path in its message.

    The file holds the keys of latest.pth and `nonfinite`, a dict with these keys:

    - `epoch`, `step`: where the first non-finite loss occurred;
    - `losses`: the losses of that step by name;
    - `index`, `target`, `variant`: the batch of that step;
    - `history`: the losses of each step since the last `sync`, by step;
    - `saved_after_step`: the last step that has updated the saved weights;
    - `tensors`: the names of the saved tensors that are not finite.

    If only the gradients were not finite, in float16, it has `epoch`, `step` and `tensors`.

    To reproduce the step, resume from latest.pth: the epoch repeats exactly.
    """
    tensors = {name: value for name, value in state["distiller"].items() if isinstance(value, torch.Tensor)}
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    content = {**state, "nonfinite": {**error.evidence, "tensors": broken}}
    try:
        distributed.run_on_main(lambda: checkpoint.save(content, path))
    except (OSError, RuntimeError, UserError) as failure:  # torch.save raises RuntimeError on a full disk
        return NonFiniteLoss(f"{error}; its state cannot be written to {path} ({' '.join(str(failure).split())[:120]})")
    return NonFiniteLoss(f"{error}; the training state was saved to {path}")
