"""Losses and accuracy of an epoch, summed on the device and fetched at intervals."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from .. import distributed
from ..errors import UserError
from .evaluation.evaluate import count_correct
from .run.nonfinite import NonFiniteLoss
from .run.progress import is_count

TOTAL = "loss"  # the name of the sum of all losses
EVIDENCE = ("index", "target", "variant")  # keys of a batch that are small, and enough to rebuild it


class EpochMeter:
    """Collects the losses of every step without waiting for the device; `sync` fetches them in one copy.

    In a process group, all processes call `sync`, `averages` and `state_dict` together. The results cover all images.

    Args:
        epoch: the epoch, counted from 1, named in messages.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.names: Tuple[str, ...] = ()
        self.images = 0
        self._pending: List[Tuple[int, Dict[str, Tensor], Tensor]] = []  # step, which images, losses [L]
        self._correct: Optional[Tensor] = None
        self._labeled: Optional[Tensor] = None  # number of images with a label; `None` if all have one
        self._sums: Dict[str, float] = {}

    def add(self, step: int, losses: Dict[str, Tensor], logits: Tensor, batch: Dict[str, Tensor]) -> None:
        """Add a training step: scalar losses by name, logits `[B, N]`, and the batch.

        Raises:
            UserError: the losses have other names than those of the epoch's first step, or one has the total's name.
        """
        self.names = self.names or tuple(losses)
        if set(self.names) != set(losses) or TOTAL in losses:
            raise UserError(
                f"the distiller returned the losses {', '.join(losses) or 'none'} at epoch {self.epoch}, step {step};"
                f" expected the same in each step of an epoch ({', '.join(self.names)}), and none named {TOTAL}, which"
                " is their sum; return a tensor of 0 for a loss that does not apply"
            )
        which = {key: value for key, value in batch.items() if key in EVIDENCE}
        self._pending.append((step, which, torch.stack([losses[name].detach().float() for name in self.names])))
        hits = count_correct(logits.detach(), batch["target"])
        self._correct = hits if self._correct is None else self._correct + hits
        if "label_weight" in batch:
            labeled = (batch["target"] >= 0).sum()
            self._labeled = labeled if self._labeled is None else self._labeled + labeled

    def sync(self) -> Dict[int, Dict[str, float]]:
        """Fetch the losses of the steps since the last call, and return them by step.

        Raises:
            NonFiniteLoss: a loss is NaN or infinite; the message names epoch, step and each loss.
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
                    " lower SOLVER.LR, set SOLVER.WARMUP_EPOCHS, or try SOLVER.AMP off, and start again",
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

    def state_dict(self) -> Dict[str, Any]:
        """Return the sums so far as plain values; call `sync` first."""
        assert not self._pending, "sync first"
        correct = None if self._correct is None else distributed.all_reduce(self._correct).tolist()
        state = {"names": list(self.names), "images": self.images, "sums": dict(self._sums), "correct": correct}
        return state if self._labeled is None else {**state, "labeled": self._num_labeled()}

    def _num_labeled(self) -> int:
        return self.images if self._labeled is None else int(distributed.all_reduce(self._labeled))

    def load_state_dict(self, state: Dict[str, Any], device: torch.device) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: a key is missing or has an impossible value.
        """
        missing = {"names", "images", "sums", "correct"} - set(state)
        if missing:
            raise ValueError(f"its meter lacks {sorted(missing)[0]}")
        if not isinstance(state["names"], list):
            raise ValueError(f"its meter's names are {state['names']!r:.60}")
        if not isinstance(state["sums"], dict) or not isinstance(state["correct"], (list, type(None))):
            raise ValueError(f"its meter's sums and correct are {state['sums']!r:.60} and {state['correct']!r:.60}")
        correct = state["correct"]
        self.names, self.images, self._sums = tuple(state["names"]), state["images"], dict(state["sums"])
        counts = [self.images, state.get("labeled", 0), *([0, 0] if correct is None else correct)]
        if len(counts) != 4 or not all(is_count(count) for count in counts):
            raise ValueError(f"its meter's images, labeled and correct are {counts!r:.60}")
        if not all(isinstance(value, float) and name in self.names for name, value in self._sums.items()):
            raise ValueError(f"its meter's sums are {self._sums!r:.60}")
        if correct is not None:
            self._correct = torch.tensor(correct if distributed.is_main_process() else [0, 0], device=device)
        if "labeled" in state:
            self._labeled = torch.tensor(counts[1] if distributed.is_main_process() else 0, device=device)

    def averages(self) -> Dict[str, float]:
        """Return averages over the fetched images: `loss`, its parts, and `train_top1`, `train_top5` in percent.

        Losses are averages over all images, accuracies over those with a label.
        """
        means = {name: total / self.images for name, total in self._sums.items()}
        top1, top5 = distributed.all_reduce(self._correct).tolist() if self._correct is not None else (0, 0)
        labeled = self._num_labeled()
        return {
            TOTAL: sum(means.values()),
            **means,
            "train_top1": round(100 * top1 / labeled, 2),
            "train_top5": round(100 * top5 / labeled, 2),
        }


def _over_all(counts: List[int], losses: List[Tensor]) -> Tuple[List[List[float]], List[int]]:
    """Return the losses of each step as means over the images of all processes, and the number of images."""
    rows = torch.stack(losses)
    if distributed.get_world_size() == 1:
        return rows.tolist(), counts
    own = torch.tensor(counts, dtype=torch.float32, device=rows.device)
    total = distributed.all_reduce(own)
    rows = distributed.all_reduce(rows * own[:, None]) / total[:, None]
    return rows.tolist(), [int(images) for images in total.tolist()]
