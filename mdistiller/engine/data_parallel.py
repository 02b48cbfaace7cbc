"""A distiller that trains with others: averaged gradients, BatchNorm over all images of a step.

Shapes: `C` channels.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, Tuple, Type

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import distributed
from ..distillers import Distiller


def in_parallel(distiller: Distiller, sync_bn: bool) -> nn.Module:
    """Return what takes a batch to `(logits, losses)` as `distiller` does, and averages gradients over the processes.

    Args:
        distiller: in training mode, on its device, its weights the same in each process.
        sync_bn: whether the BatchNorms that are trained see the images of all processes; changed in place, their keys
            in a state_dict stay.
    """
    device = next(distiller.parameters()).device
    if sync_bn:
        synchronise(distiller, device.type)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a new name, which PyTorch 2.4 lacks
        return DistributedDataParallel(
            _Step(distiller),
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # BatchNorm's are alike or averaged each epoch; banks change alike everywhere
            find_unused_parameters=True,
        )


class _Step(nn.Module):
    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller
        # some methods leave parameters unused, and PyTorch complains where it looks for such and finds none
        self.unused = nn.Parameter(torch.zeros((), device=next(distiller.parameters()).device))

    def forward(self, **batch: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits, losses = self.distiller(**batch)
        return logits.detach(), losses  # else what makes logits alone would be waited for


class _OnCpu(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the images of all processes; PyTorch's own knows CUDA alone."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, var, size = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
                self.running_var.lerp_(var * (size / (size - 1)), momentum)  # type: ignore[union-attr]
        return output


class _CpuBatchNorm1d(_OnCpu, nn.BatchNorm1d):
    pass


class _CpuBatchNorm2d(_OnCpu, nn.BatchNorm2d):
    pass


class _CudaBatchNorm1d(nn.SyncBatchNorm, nn.BatchNorm1d):
    process_group = None


class _CudaBatchNorm2d(nn.SyncBatchNorm, nn.BatchNorm2d):
    process_group = None


SYNCED: Dict[str, Dict[Type[nn.Module], Type[nn.Module]]] = {
    "cpu": {nn.BatchNorm1d: _CpuBatchNorm1d, nn.BatchNorm2d: _CpuBatchNorm2d},
    "cuda": {nn.BatchNorm1d: _CudaBatchNorm1d, nn.BatchNorm2d: _CudaBatchNorm2d},
}


def synchronise(model: nn.Module, device_type: str) -> None:
    """Have the BatchNorms of `model` that are in training mode see the images of all processes, on `cpu` or `cuda`."""
    kinds = SYNCED[device_type]
    for module in model.modules():
        if module.training and type(module) in kinds:
            # the same object, wherever it is held, and still a BatchNorm2d to those who ask
            module.__class__ = kinds[type(module)]


def own_statistics(model: nn.Module) -> Dict[str, Tensor]:
    """Return, by its key in the state_dict, each running mean and variance that only this process's images made.

    Those of the BatchNorms in training mode that are not synchronised; none for a single process.
    """
    if distributed.get_world_size() == 1:
        return {}
    synced = tuple(kind for kinds in SYNCED.values() for kind in kinds.values())
    return {
        f"{name}.{key}": getattr(module, key)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and not isinstance(module, synced)
        for key in ("running_mean", "running_var")
        if getattr(module, key) is not None
    }


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their `own_statistics`, so that they evaluate, and save, one model."""
    for statistic in own_statistics(model).values():
        # in float64, so that those that are alike already stay to the bit
        statistic.copy_(distributed.all_reduce(statistic.double()) / distributed.get_world_size())


class _Normalise(torch.autograd.Function):
    """BatchNorm of the images of all processes, in float32.

    Returns the output, of the input's type, and without a gradient: mean and biased variance `[C]`, and the number of
    values for each channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tuple[Tensor, ...]:
        zeros = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        own_mean, own_var = torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)
        size = own_mean.new_tensor([x.numel() / x.shape[1]])
        means, variances, sizes = _of_all(torch.cat([own_mean, own_var, size])).split([*[x.shape[1]] * 2, 1], dim=1)
        size = sizes.sum()
        mean = (means * sizes).sum(0) / size
        # not the mean of squares less the squared mean, which loses the digits of a small variance
        var = ((variances + (means - mean).square()) * sizes).sum(0) / size
        ctx.save_for_backward(x, weight, mean, var, size)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, size)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, size

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Tuple[Any, ...]:
        x, weight, mean, var, size = ctx.saved_tensors
        kind, x, grad = x.dtype, x.to(mean.dtype), grad.to(mean.dtype)  # two terms that may nearly cancel out
        # as if mean and variance were constants
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        products, sums = _of_all(torch.cat([grad_weight, grad_bias])).sum(0).chunk(2)
        scale = (var + ctx.eps).rsqrt() / size
        if weight is not None:
            scale = scale * weight
        grad_x = grad_x - F.batch_norm(x, mean, var, scale * products, scale * sums, False, 0.0, ctx.eps)
        grad_x = grad_x.to(kind)
        return (grad_x, None, None, None) if weight is None else (grad_x, grad_weight, grad_bias, None)


def _of_all(own: Tensor) -> Tensor:
    """Return the processes' vectors `[n]` as `[processes, n]`."""
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    dist.all_gather(parts, own)  # for a few numbers on a CPU some times faster than a reduction
    return torch.stack(parts)
