"""What is kept of a run whose loss became NaN or infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import torch

from ... import distributed
from ...errors import UserError
from .. import checkpoint
from ..meter import NonFiniteLoss


def keep_evidence(error: NonFiniteLoss, state: Dict[str, Any], path: Path) -> NonFiniteLoss:
    """Write the state at a loss that is not finite to `path`; return the error with a word on where it is.

    The file holds what latest.pth does, and `nonfinite`: `epoch`, `step` of the first bad loss in it, its `losses` by
    name, `index` and `target` (and `variant`) of its batch, the losses of each step since the host last looked
    (`history`, by step), `saved_after_step`: the step whose update the weights have seen last, and `tensors`: the names
    of those that are not finite by then. The state before the bad step is that of latest.pth, from which the epoch runs
    again alike.
    """
    tensors = {name: value for name, value in state["distiller"].items() if isinstance(value, torch.Tensor)}
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    content = {**state, "nonfinite": {**error.evidence, "tensors": broken}}
    try:
        distributed.run_on_main(lambda: checkpoint.save(content, path))
    except (OSError, RuntimeError, UserError) as failure:  # torch's writer raises a RuntimeError where a disk is full
        return NonFiniteLoss(f"{error}; its state cannot be written to {path} ({' '.join(str(failure).split())[:120]})")
    return NonFiniteLoss(f"{error}; its state is in {path}")
