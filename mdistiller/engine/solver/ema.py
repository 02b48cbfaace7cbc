"""An exponential moving average of the student's weights (`SOLVER.EMA`), evaluated and deployed in their place.

Training never reads the averages. They are those of the student and its head: parameters, and buffers such as
BatchNorm's running statistics.

Source: "Acceleration of Stochastic Approximation by Averaging" (1992); the ramp is that of TensorFlow's
`ExponentialMovingAverage`.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from itertools import chain
from typing import Any, Dict, Iterator, List

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ... import distributed
from ...distillers import DeployedStudent, Distiller
from ...errors import UserError, one_line
from .data_parallel import convert_sync_bn, own_statistics


def decay_of(steps: int, decay: float) -> float:
    """Return the weight of the average after `steps` steps when the next one is added: `decay` in the long run.

    It rises as `steps / (steps + 9)`, so that the initial weights are forgotten in a short run too.
    """
    return min(decay, steps / (steps + 9))


class StudentAverage:
    """Keeps the average, and puts it in the place of the student and its head.

    Args:
        distiller: the distiller, on its device and in its memory format.
        decay: the decay of the average, in (0, 1).

    Attributes:
        averaged: the average, as a model of its own.

    Raises:
        UserError: the student cannot be copied.
    """

    def __init__(self, distiller: Distiller, decay: float) -> None:
        self._distiller = distiller
        self._decay = decay
        try:
            self.averaged = copy.deepcopy(self._trained()).requires_grad_(False).train()
        except (TypeError, RuntimeError) as error:  # of a user's own model
            reason = one_line(error)
            raise UserError(f"SOLVER.EMA needs a copy of the student, which fails ({reason}); set it to 0") from None
        self._steps = 0

    def _trained(self) -> DeployedStudent:
        return DeployedStudent(self._distiller.student, self._distiller.head)

    @torch.no_grad()
    def update(self) -> None:
        """Add the present weights to the average; called after each step.

        PyTorch's `AveragedModel` would wait for the GPU in each call.
        """
        pairs = list(zip(_tensors(self.averaged), _tensors(self._trained())))
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        get_ema_multi_avg_fn(decay_of(self._steps, self._decay))(averages, values, self._steps)
        for average, value in pairs:
            if not average.is_floating_point():  # a counter, such as BatchNorm's
                average.copy_(value)
        self._steps += 1

    def start_parallel(self, sync_bn: bool) -> None:
        """Prepare for a process group as `in_parallel` prepares the student."""
        if sync_bn:
            convert_sync_bn(self.averaged, next(self.averaged.parameters()).device.type)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the average as the distiller's student and head within a `with` block."""
        distiller: Any = self._distiller
        model: Any = self.averaged
        trained = distiller.student, distiller.head
        distiller.student, distiller.head = model.backbone, model.head
        try:
            yield
        finally:
            distiller.student, distiller.head = trained
            self.averaged.train()

    def state_dict(self) -> Dict[str, Any]:
        """Return the averages, and the statistics of each process. All processes of a group call it together."""
        statistics = {key: value.cpu() for key, value in own_statistics(self.averaged).items()}
        return {
            "averages": self.averaged.state_dict(),
            "steps": self._steps,
            "statistics": distributed.all_gather(statistics),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: it is of another student.
        """
        try:
            self.averaged.load_state_dict(state["averages"])
            statistics = statistics_of_process(state["statistics"])
            self.averaged.load_state_dict(statistics, strict=False)
            self._steps = int(state["steps"])
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"its average is of another student ({one_line(error)})") from None


def _tensors(model: nn.Module) -> List[Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]


def statistics_of_process(of_processes: List[Dict[str, Tensor]]) -> Dict[str, Tensor]:
    """Return the running means and variances of this process, or their averages if other processes saved them."""
    if len(of_processes) == distributed.get_world_size():
        return of_processes[distributed.get_rank()]
    return {key: torch.stack([part[key] for part in of_processes]).mean(0) for key in of_processes[0]}
