"""Losses and accuracy of an epoch, summed on the device and looked at only now and then."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from .. import distributed
from ..errors import UserError
from .evaluate import count_correct

EVIDENCE = ("index", "target", "variant")  # of a batch: small, and enough to make it again


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite.

    Attributes:
        evidence: what is known of the step; see `post_mortem.keep_evidence`.
    """

    def __init__(self, message: str, evidence: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(message)
        self.evidence = evidence or {}


class EpochMeter:
    """Collects every step's losses without waiting for the device; `sync` fetches them in one copy.

    Several processes sync, and ask for averages and states, together; what they get is of all their images.

    Args:
        epoch: counted from 1, for messages.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.names: Tuple[str, ...] = ()
        self.images = 0
        self._pending: List[Tuple[int, Dict[str, Tensor], Tensor]] = []  # step, which images, losses [L]
        self._correct: Optional[Tensor] = None
        self._sums: Dict[str, float] = {}

    def add(self, step: int, losses: Dict[str, Tensor], logits: Tensor, batch: Dict[str, Tensor]) -> None:
        """Take in one training step: scalar losses by name, `logits [B, N]`, and the batch they are of."""
        self.names = tuple(losses)
        which = {key: value for key, value in batch.items() if key in EVIDENCE}
        self._pending.append((step, which, torch.stack([loss.detach().float() for loss in losses.values()])))
        hits = count_correct(logits.detach(), batch["target"])
        self._correct = hits if self._correct is None else self._correct + hits

    def sync(self) -> Dict[int, Dict[str, float]]:
        """Fetch the losses of the steps since the last call, by step.

        Raises:
            NonFiniteLoss: naming epoch, step and each loss.
        """
        if not self._pending:
            return {}
        pending, self._pending = self._pending, []
        rows, counts = _over_all([len(which["target"]) for _, which, _ in pending], [row for *_, row in pending])
        fetched = {}
        for (step, which, _), row, images in zip(pending, rows, counts):
            fetched[step] = values = dict(zip(self.names, row))
            if not all(abs(value) < float("inf") for value in row):
                shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
                raise NonFiniteLoss(
                    f"the loss is not finite at epoch {self.epoch}, step {step} ({shown}); training stopped:"
                    " lower SOLVER.LR, set SOLVER.WARMUP_EPOCHS, or try SOLVER.AMP off, and start again with"
                    " --overwrite",
                    {
                        "epoch": self.epoch,
                        "step": step,
                        "losses": values,
                        **{key: distributed.gather_with_grad(value)[0].cpu() for key, value in which.items()},
                        "history": {number: dict(zip(self.names, r)) for (number, *_), r in zip(pending, rows)},
                        "saved_after_step": pending[-1][0],
                    },
                )
            self.images += images
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value * images
        return fetched

    def state(self) -> Dict[str, Any]:
        """Return what was taken in and synced so far, for `load`."""
        assert not self._pending, "sync first"
        correct = None if self._correct is None else distributed.all_reduce(self._correct).tolist()
        return {"names": list(self.names), "images": self.images, "sums": dict(self._sums), "correct": correct}

    def load(self, state: Dict[str, Any], device: torch.device) -> None:
        """Go on from a `state`."""
        correct = state["correct"]
        self.names, self.images, self._sums = tuple(state["names"]), state["images"], dict(state["sums"])
        counts = [self.images, *([0, 0] if correct is None else correct)]
        if len(counts) != 3 or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"images and correct are {counts!r:.60}")
        if not all(isinstance(value, float) and name in self.names for name, value in self._sums.items()):
            raise ValueError(f"sums are {self._sums!r:.60}")
        if correct is not None:
            self._correct = torch.tensor(correct if distributed.is_main_process() else [0, 0], device=device)

    def averages(self) -> Dict[str, float]:
        """Return, over the images synced so far: `loss`, each of its parts, `train_top1`, `train_top5` in percent."""
        means = {name: total / self.images for name, total in self._sums.items()}
        top1, top5 = distributed.all_reduce(self._correct).tolist() if self._correct is not None else (0, 0)
        return {
            "loss": sum(means.values()),
            **means,
            "train_top1": round(100 * top1 / self.images, 2),
            "train_top5": round(100 * top5 / self.images, 2),
        }


def _over_all(counts: List[int], losses: List[Tensor]) -> Tuple[List[List[float]], List[int]]:
    """Return each step's losses, as means over the images of all processes, and how many those are."""
    rows = torch.stack(losses)
    if distributed.get_world_size() == 1:
        return rows.tolist(), counts
    own = torch.tensor(counts, dtype=torch.float32, device=rows.device)
    total = distributed.all_reduce(own)
    rows = distributed.all_reduce(rows * own[:, None]) / total[:, None]
    return rows.tolist(), [int(images) for images in total.tolist()]
