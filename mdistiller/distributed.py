"""Distributed helpers; no-ops in a single process.

torchrun starts the processes that train one student and numbers them through environment variables. Plain values and
CPU tensors travel over gloo, CUDA tensors over NCCL. Every process must call the collective functions here, in the same
order.

Shapes: `b` images of this process, `B` images of all processes, in the order of the ranks.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import torchrun
from .distributed_errors import reported_once, to_sendable
from .errors import UserError, counted, one_line

COLLECTIVE_TIMEOUT = timedelta(hours=3)  # one process may have to check all images of a large set meanwhile
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)  # torchrun has gathered the processes before

_initialized = False  # whether this process is inside `process_group`, as one of several


def get_rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if _initialized else 0


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _initialized else 1


def get_local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _initialized else 1


def is_main_process() -> bool:
    """Return whether this process has rank 0; only that process writes files."""
    return get_rank() == 0


def all_gather(value: Any) -> List[Any]:
    """Return the value of each process, in the order of the ranks.

    Args:
        value: the value of this process, made of plain values and CPU tensors.
    """
    if not _initialized:
        return [value]
    values: List[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the main process's value.

    Args:
        value: the value of this process, made of plain values and CPU tensors.
    """
    if not _initialized:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, which may be on any device. The sum has no gradient."""
    if not _initialized:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_max(number: int) -> int:
    """Return the largest of the processes' numbers."""
    if not _initialized:
        return number
    own = torch.tensor(int(number))
    numbers = [torch.empty_like(own) for _ in range(get_world_size())]
    dist.all_gather(numbers, own)  # faster than a reduction with gloo
    return int(max(numbers))


def synchronize() -> None:
    """Wait until all processes have called this function."""
    all_reduce_max(0)


def run_on_main(action: Callable[[], Any]) -> Any:
    """Call `action` on the main process only; return its result, or raise its exception, on every process."""
    if not _initialized:
        return action()
    result: Any = None
    error: Optional[Exception] = None
    if is_main_process():
        try:
            result = action()
        except Exception as raised:  # of any type; otherwise the other processes would wait for the broadcast
            error = raised
    result, error_on_main = broadcast((result, None if error is None else to_sendable(error)))
    if error is not None:
        raise error
    if error_on_main is not None:
        raise error_on_main
    return result


@contextmanager
def local_main_first() -> Iterator[None]:
    """Let local rank 0 of each machine run a `with` block before the other processes there.

    Use it for work that leaves files behind, such as downloads and cached statistics.
    """
    waits = _initialized and int(os.environ["LOCAL_RANK"]) > 0
    if waits:
        synchronize()
    try:
        yield
    finally:  # after an error too; the other processes then meet the same error
        if not waits:
            synchronize()


def check_same(what: str, seen: str) -> None:
    """Raise an error unless `seen` is the same on all processes.

    Args:
        what: the name of what is compared, for the message.
        seen: what this process found, such as a number of images.

    Raises:
        UserError: the processes found different things.
    """
    seen_by_all = all_gather(seen)
    for rank, other in enumerate(seen_by_all):
        if other != seen_by_all[0]:
            raise UserError(
                f"{what} is not the same for all processes: {seen_by_all[0]} for process 0, {other} for process {rank};"
                " give every machine the same files"
            )


def local_slice(part: slice) -> slice:
    """Return this process's share of consecutive images. The shares differ by at most one image."""
    rank, world_size = get_rank(), get_world_size()
    total = part.stop - part.start
    return slice(part.start + total * rank // world_size, part.start + total * (rank + 1) // world_size)


def local_rows(tensor: Tensor, size: int) -> Tensor:
    """Return this process's `size` rows of a tensor `[B, …]` that holds the rows of all processes."""
    if not _initialized:
        return tensor
    start = sum(all_gather(size)[: get_rank()])
    return tensor[start : start + size]


def gather_with_grad(*tensors: Tensor) -> Tuple[Tensor, ...]:
    """Return each tensor `[b, …]` gathered from all processes, `[B, …]`, with gradients.

    Use it in losses that relate the images of a batch to each other. The gradient of a process's own images is summed
    over all processes. Floating-point tensors become float32. A single process gets its tensors back unchanged.
    """
    if not _initialized:
        return tensors
    sizes = all_gather(len(tensors[0]))
    return tuple(_Gather.apply(t.float() if t.is_floating_point() else t, sizes) for t in tensors)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: List[int]) -> Tensor:
        ctx.own = slice(sum(sizes[: get_rank()]), sum(sizes[: get_rank() + 1]))
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        return all_reduce(grad.contiguous())[ctx.own], None


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun started, if any, within a `with` block.

    Only the main process logs notes. An error that all processes meet is reported once, by the main process.

    Raises:
        UserError: the environment variables are incomplete, this process has no device, or the others are unreachable.
    """
    global _initialized
    if not torchrun.in_group():
        yield
        return
    error_store = _init_process_group()
    _initialized = True
    notes = logging.getLogger("mdistiller")
    level = notes.level
    if not is_main_process():
        notes.setLevel(logging.ERROR)
    try:
        with reported_once(error_store, get_rank(), get_world_size()):
            yield
            destroy_process_group()
    finally:
        notes.setLevel(level)
        _initialized = False


def _init_process_group() -> dist.Store:
    """Initialize PyTorch's process group; return a store in which the processes compare their errors."""
    backend = "gloo"
    if torch.cuda.is_available():
        local_rank, num_devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_devices:
            raise UserError(
                f"LOCAL_RANK is {local_rank}, but this machine has {counted(num_devices, 'CUDA device')}; start"
                f" torchrun with --nproc_per_node {num_devices} or less"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    # torchrun keeps its store when it restarts the workers, so each attempt needs keys of its own
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        store.set_timeout(COLLECTIVE_TIMEOUT)
        group_store = dist.PrefixStore(f"group {attempt}", store)
        dist.init_process_group(
            backend, store=group_store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:  # PyTorch's errors of sockets and stores
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = one_line(error)
        raise UserError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join the process group at {address}"
            f" ({reason}); start them with torchrun, and check that this machine can reach that address"
        ) from None
    return dist.PrefixStore(f"errors {attempt}", store)


def destroy_process_group() -> None:
    """Destroy the process group.

    PyTorch 2.4 holds Python's global lock while it waits for gloo's threads to end. It hangs if one of them needs that
    lock to release the tensors of the last collective. A backend that Python still refers to is destroyed later,
    without the lock.
    """
    group = dist.group.WORLD
    assert group is not None
    gloo = group._get_backend(torch.device("cpu"))
    del group
    dist.destroy_process_group()
    del gloo
