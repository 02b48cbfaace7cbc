"""BatchNorm statistics for evaluation, re-estimated over training batches (`SOLVER.PRECISE_BN`).

Running statistics are exponential averages over the last steps. They depend on which batches came last, and on weights
that have changed since. Here they are plain averages over many batches with the present weights.

Source: "Rethinking 'Batch' in BatchNorm" (2021), section 3.

Training never sees the re-estimated statistics: its own tensors are not written to, and no statistics are saved with
its state. `torch.optim.swa_utils.update_bn` computes the same averages, but also resets BatchNorms that are frozen or
that the forward pass does not reach, and leaves the model changed if it is interrupted.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator

import torch
from torch import Tensor, nn

from ...dataset import Batch
from ...distillers import Distiller
from ..run.random_state import keep_random_state
from ..solver.data_parallel import average_statistics
from ..speed.precision import Precision

Statistics = Dict[str, Tensor]  # running means and variances `[C]` by their names in the distiller


@torch.no_grad()
def estimate_statistics(
    distiller: Distiller, batches: Iterable[Batch], precision: Precision, check: Callable[[], None] = lambda: None
) -> Statistics:
    """Return the averages of the batches' means and unbiased variances for the BatchNorms of student and head.

    If a method has its own `forward_test`, those of its other modules are included, except the teacher's. BatchNorms
    that are in evaluation mode, or that `forward_eval` does not reach, are left out. The distiller runs in its training
    mode, and is left as it was: buffers and random numbers too. In a process group each process runs its share of the
    batches; all return the same statistics.

    Args:
        distiller: the distiller; its `forward_eval` evaluates the student.
        batches: the training batches; they are not read if there is no such BatchNorm.
        precision: the precision of the training steps.
        check: a function that is called before each forward pass; an exception ends the estimation.
    """
    if not distiller.training:
        distiller.train()
    # otherwise only student and head run, and copies of large buffers, such as CRD's memory bank, are saved
    may_run_all = distiller.overrides_forward_test or type(distiller).forward_eval is not Distiller.forward_eval
    prefixes = ("",) if may_run_all else ("student.", "head.")
    buffers = {name: buffer for name, buffer in distiller.named_buffers() if name.startswith(prefixes)}
    norms = {
        name: module
        for name, module in distiller.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and f"{name}.num_batches_tracked" in buffers
        and not name.startswith("teacher.")
    }
    if not norms:
        return {}
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    for name in norms:
        copies[f"{name}.num_batches_tracked"].zero_()
    device = next(distiller.parameters()).device
    with replaced_buffers(distiller, copies), _cumulative_averages(norms.values()), keep_random_state(device):
        for batch in batches:
            check()
            with precision.autocast():
                distiller.forward_eval(batch["image"])
        average_statistics(distiller)
    return {
        f"{name}.{key}": copies[f"{name}.{key}"]
        for name in norms
        if copies[f"{name}.num_batches_tracked"] > 0
        for key in ("running_mean", "running_var")
    }


@contextmanager
def replaced_buffers(model: nn.Module, buffers: Dict[str, Tensor]) -> Iterator[None]:
    """Use other tensors, by name, as buffers of `model` within a `with` block. Its own tensors are not written to."""
    places = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in buffers}
    own = {name: getattr(*place) for name, place in places.items()}
    try:
        for name, place in places.items():
            setattr(*place, buffers[name])
        yield
    finally:
        for name, place in places.items():
            setattr(*place, own[name])


@contextmanager
def _cumulative_averages(norms: Iterable[Any]) -> Iterator[None]:
    """Let BatchNorms weight all batches alike within a `with` block."""
    momenta = {norm: norm.momentum for norm in norms}
    try:
        for norm in momenta:
            norm.momentum = None
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def eval_with(distiller: Distiller, statistics: Statistics, compare: bool, image: Tensor) -> Dict[str, Tensor]:
    """Return `distiller.forward_eval(image)` with the given BatchNorm statistics.

    Args:
        distiller: the distiller, in evaluation mode.
        statistics: the statistics that `estimate_statistics` returned; if empty, the running statistics are used.
        compare: whether to add `running`, the logits that the running statistics give for `deployed`, in a second
            forward pass. Without effect if `statistics` is empty.
        image: the images, `[B, 3, H, W]`, normalized.
    """
    image = distiller.in_memory_format(image)
    with replaced_buffers(distiller, statistics):
        logits = distiller.forward_eval(image)
    return {**logits, "running": distiller.forward_eval(image)["deployed"]} if compare and statistics else logits
