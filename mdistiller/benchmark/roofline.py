"""A roofline model: the least time that a training step can take on a machine.

The model counts convolutions and matrix products, forward and backward, and the bytes of their operands and results,
each read or written once. It assumes that everything else (normalization, activations, losses, augmentation) is fused
into them at no cost, and that the optimizer reads and writes its state once. Arithmetic and memory traffic can overlap,
so the least time is the longer of the two, not their sum. No loop reaches it; it bounds what can still be gained.

Source: "Roofline: An Insightful Visual Performance Model for Multicore Architectures" (2009).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..distillers import Distiller
from .hardware import Peak

SGD_PASSES = 5  # reads parameter, gradient and momentum, writes parameter and momentum


class Cost(NamedTuple):
    """The cost of a computation.

    Attributes:
        flops: number of floating-point operations.
        bytes: number of bytes read and written.
    """

    flops: float
    bytes: float

    def min_seconds(self, peak: Peak) -> Tuple[float, str]:
        """Return the least time in seconds, and what bounds it: `arithmetic` or `memory`."""
        arithmetic, memory = self.flops / peak.flops, self.bytes / peak.bandwidth
        return max(arithmetic, memory), "arithmetic" if arithmetic >= memory else "memory"


class _TrafficCounterMode(TorchDispatchMode):
    """Counts the bytes of operands and results of every convolution and matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            tensors = (*args, *(result if isinstance(result, (tuple, list)) else (result,)))
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return result


def measure_cost(run: Callable[[], object]) -> Cost:
    """Call `run` and return its cost."""
    traffic = _TrafficCounterMode()
    with traffic, FlopCounterMode(display=False) as counter:
        run()
    return Cost(float(counter.get_total_flops()), float(traffic.bytes))


def step_cost(distiller: Distiller, batch: Dict[str, Any], dtype: torch.dtype, teacher_cached: bool) -> Cost:
    """Return the cost of a training step, measured by running one step in float32.

    Args:
        distiller: the distiller, in float32; the step changes its statistics and gradients.
        batch: the arguments of `forward_train`, including `epoch`.
        dtype: the data type of the networks in the training that is compared; the optimizer's state is float32.
        teacher_cached: whether the teacher's outputs are cached, so that the teacher does not run.
    """

    def step() -> None:
        _, losses = distiller.train()(**batch)
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()

    cost = measure_cost(step)
    if teacher_cached:
        with torch.no_grad():
            teacher = measure_cost(lambda: distiller.teacher(batch["image"]))
        cost = Cost(cost.flops - teacher.flops, cost.bytes - teacher.bytes)
    state = sum(p.numel() * p.element_size() for p in distiller.get_learnable_parameters())
    return Cost(cost.flops, cost.bytes * dtype.itemsize / 4 + SGD_PASSES * state)
