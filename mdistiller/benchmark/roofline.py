"""The least time that a training step can take on a machine, from what it has to compute and to move.

Counted are convolutions and matrix products, forward and backward, and the bytes that they read and write when each
reads its operands and writes its result once. Everything else (normalisation, activations, losses, augmentation) is
taken to be fused into them, for nothing; the optimizer reads and writes its state once. Arithmetic and transfers can
overlap, so the floor is the longer of the two, not their sum. No loop reaches it: it says how much is left at most.
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


class Work(NamedTuple):
    """What something costs: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float

    def floor(self, peak: Peak) -> Tuple[float, str]:
        """Return the least seconds that it takes, and which of the two bounds them: `arithmetic` or `memory`."""
        arithmetic, memory = self.flops / peak.flops, self.bytes / peak.bandwidth
        return max(arithmetic, memory), "arithmetic" if arithmetic >= memory else "memory"


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of operands and results of every convolution and matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            tensors = (*args, *(result if isinstance(result, (tuple, list)) else (result,)))
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return result


def count_work(run: Callable[[], object]) -> Work:
    """Return what `run()` costs."""
    traffic = _Traffic()
    with traffic, FlopCounterMode(display=False) as counter:
        run()
    return Work(float(counter.get_total_flops()), float(traffic.bytes))


def step_work(distiller: Distiller, batch: Dict[str, Any], dtype: torch.dtype, teacher_known: bool) -> Work:
    """Return what a training step costs, which is run once, in float32, for that.

    Args:
        distiller: in float32; its statistics and gradients change.
        batch: what `forward_train` takes, `epoch` among it.
        dtype: of the networks in the training in question; the optimizer's state is float32.
        teacher_known: whether the teacher's outputs are at hand, so that it does not run.
    """

    def step() -> None:
        _, losses = distiller.train()(**batch)
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()

    work = count_work(step)
    if teacher_known:
        with torch.no_grad():
            teacher = count_work(lambda: distiller.teacher(batch["image"]))
        work = Work(work.flops - teacher.flops, work.bytes - teacher.bytes)
    state = sum(p.numel() * p.element_size() for p in distiller.get_learnable_parameters())
    return Work(work.flops, work.bytes * dtype.itemsize / 4 + SGD_PASSES * state)
