"""Training in a process group: averaged gradients, and BatchNorm over all images of a step.

Shapes: `C` channels.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, Iterator, List, Tuple, Type

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ... import distributed
from ...distillers import Distiller


def in_parallel(distiller: Distiller, sync_bn: bool) -> nn.Module:
    """Wrap a distiller in DistributedDataParallel; called with a batch, it returns `(logits, losses)` as before.

    Args:
        distiller: the distiller, in training mode and on its device, with the same weights in each process.
        sync_bn: whether trained BatchNorms normalize over the images of all processes. They are changed in place; keys
            of the state_dict stay.
    """
    device = next(distiller.parameters()).device
    if sync_bn:
        convert_sync_bn(distiller, device.type)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a newer name that PyTorch 2.4 lacks
        return DistributedDataParallel(
            _Step(distiller),
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # statistics are equal or averaged each epoch, memory banks equal
            find_unused_parameters=True,
        )


class _Step(nn.Module):
    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller
        # PyTorch warns if it looks for unused parameters and finds none; only some methods have them
        self.unused = nn.Parameter(torch.zeros((), device=next(distiller.parameters()).device))

    def forward(self, **batch: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits, losses = self.distiller(**batch)
        # Otherwise DDP would wait for gradients of parameters that feed only the logits.
        return logits.detach(), losses


class _OnCpu(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the images of all processes. PyTorch's SyncBatchNorm supports CUDA only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, var, size = _Normalize.apply(input, self.weight, self.bias, self.eps)
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
ALL_SYNCED: Tuple[Type[nn.Module], ...] = (nn.SyncBatchNorm, _OnCpu)


def convert_sync_bn(model: nn.Module, device_type: str) -> None:
    """Make the BatchNorms of `model` that are in training mode normalize over the images of all processes."""
    kinds = SYNCED[device_type]
    for module in model.modules():
        if module.training and type(module) in kinds:
            # changes the object itself, which others may refer to, and stays an instance of BatchNorm2d
            module.__class__ = kinds[type(module)]


def unsynchronized(model: nn.Module) -> List[str]:
    """Return the types of the trained BatchNorms that `convert_sync_bn` has left as they were."""
    return sorted({type(module).__name__ for _, module in _own_batchnorms(model)})


def own_statistics(model: nn.Module) -> Dict[str, Tensor]:
    """Return the running means and variances that depend on the images of this process only, by their state_dict keys.

    They belong to BatchNorms in training mode that are not synchronized. A single process has none.
    """
    if distributed.get_world_size() == 1:
        return {}
    return {
        f"{name}.{key}": getattr(module, key)
        for name, module in _own_batchnorms(model)
        for key in ("running_mean", "running_var")
        if getattr(module, key) is not None
    }


def _own_batchnorms(model: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """Yield the BatchNorms in training mode that see only the images of this process, with their names."""
    for name, module in model.named_modules():
        is_batchnorm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_batchnorm and module.training and not isinstance(module, ALL_SYNCED):
            yield name, module


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Average `own_statistics` over the processes, so that all evaluate and save the same model."""
    for statistic in own_statistics(model).values():
        # float64, so that equal values stay bit-identical
        statistic.copy_(distributed.all_reduce(statistic.double()) / distributed.get_world_size())


class _Normalize(torch.autograd.Function):
    """BatchNorm over the images of all processes, in float32.

    Returns the output in the type of the input, and without gradients: mean and biased variance `[C]`, and the number
    of values per channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tuple[Tensor, ...]:
        zeros = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        own_mean, own_var = torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)
        size = own_mean.new_tensor([x.numel() / x.shape[1]])
        means, variances, sizes = _of_all(torch.cat([own_mean, own_var, size])).split([*[x.shape[1]] * 2, 1], dim=1)
        size = sizes.sum()
        mean = (means * sizes).sum(0) / size
        # numerically stable for a small variance, unlike the mean of squares minus the squared mean
        var = ((variances + (means - mean).square()) * sizes).sum(0) / size
        ctx.save_for_backward(x, weight, mean, var, size)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, size)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, size

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Tuple[Any, ...]:
        x, weight, mean, var, size = ctx.saved_tensors
        kind, x, grad = x.dtype, x.to(mean.dtype), grad.to(mean.dtype)  # the terms below nearly cancel
        # with mean and variance as constants
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
    """Gather vectors `[n]` of the processes as `[processes, n]`."""
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    dist.all_gather(parts, own)  # several times faster than a reduction for a few numbers on a CPU
    return torch.stack(parts)
