"""The processes that train one student together; a single process takes part in nothing and pays nothing.

torchrun starts them and tells each by its environment who it is. They say plain values and CPU tensors to each other
by gloo, CUDA tensors by NCCL. Whatever is done together must be called by all of them, in the same order.

Shapes: `b` images of this process, `B` of all of them, which lie in the order of the ranks.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(minutes=30)  # of one process with another
PATIENCE_TO_MEET = timedelta(minutes=5)  # at the start; torchrun has brought them together before
SECONDS_TO_TELL = 3  # how long processes wait for each other where one has met an error that all may have met

_joined: List[Any] = []  # the store of the group that this process is in


def get_rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if _joined else 0


def get_world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if _joined else 1


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return get_rank() == 0


def get_local_world_size() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _joined else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Be one of the processes that torchrun started, if it did, within a `with` block.

    An error that all of them meet is left to the first to tell; what only one of them meets ends the others with a line
    each, as their launcher does with those that wait.

    Raises:
        UserError: the environment is not that of a group, or there is no device for this process.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit():
        raise UserError(f"WORLD_SIZE is {size!r}; expected the number of processes, as torchrun sets it")
    if int(size) <= 1 or "LOCAL_RANK" not in os.environ:
        yield
        return
    store = _join()
    _joined.append(store)
    notes = logging.getLogger("mdistiller")
    level = notes.level
    if not is_main_process():
        notes.setLevel(logging.ERROR)
    try:
        yield
        destroy_process_group()
    except UserError as error:
        if _told_by_the_first(store, str(error)):
            raise SystemExit(2) from None
        raise
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise UserError(
            f"process {get_rank()} of {get_world_size()} lost the connection to the others; see the first error"
        ) from None
    finally:
        notes.setLevel(level)
        _joined.clear()


def _join() -> Any:
    lacking = [name for name in NEEDED if name not in os.environ]
    if lacking:
        raise UserError(f"WORLD_SIZE is set but not {', '.join(lacking)}; start several processes by torchrun")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        if name in os.environ and not os.environ[name].isdigit():
            raise UserError(f"{name} is {os.environ[name]!r}; expected a number, as torchrun sets it")
    backend = "gloo"
    if torch.cuda.is_available():
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise UserError(f"--nproc_per_node is more than the {devices} CUDA devices here; give {devices} or less")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    # the launcher's store lives on when it restarts its workers, with what those before wrote to it
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=PATIENCE_TO_MEET))
        store.set_timeout(PATIENCE)
        group = dist.PrefixStore(f"group {attempt}", store)
        dist.init_process_group(backend, store=group, rank=number, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # as torch's errors on sockets and stores are
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others at {place} ({reason});"
            " start them by torchrun, and see that this machine reaches that address"
        ) from None
    return dist.PrefixStore(f"errors {attempt}", store)


def destroy_process_group() -> None:
    """Destroy the process group that this process is in.

    PyTorch 2.4 holds Python's global lock while it waits for gloo's threads to end, and hangs if one of them needs that
    lock to release the tensors of the last collective. A backend that Python refers to is destroyed without the lock.
    """
    group = dist.group.WORLD
    assert group is not None
    gloo = group._get_backend(torch.device("cpu"))
    del group
    dist.destroy_process_group()
    del gloo


def _told_by_the_first(store: Any, message: str) -> bool:
    """Whether this error is the first process's too, which then tells it alone.

    The store may end with the first process, which therefore waits until the others have read. A launcher ends all
    processes when it sees one end; therefore the others wait for the first to end.
    """
    patience = timedelta(seconds=SECONDS_TO_TELL)
    try:
        if is_main_process():
            store.set("first", message)
            store.wait([f"read by {number}" for number in range(1, get_world_size())], patience)
            return False
        store.wait(["first"], patience)
        told = bool(store.get("first").decode() == message)
        store.set(f"read by {get_rank()}", "")
    except (RuntimeError, ValueError):  # the others said nothing, or are gone
        return False
    if told:
        with suppress(RuntimeError, ValueError):
            store.wait(["never"], patience)
    return told


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, getattr(dist, "DistError", ())) or "gloo" in str(error)


def local_slice(part: slice) -> slice:
    """Return what this process takes of consecutive images: the shares differ by one image at most."""
    total = part.stop - part.start
    return slice(
        part.start + total * get_rank() // get_world_size(), part.start + total * (get_rank() + 1) // get_world_size()
    )


def all_gather(value: Any) -> List[Any]:
    """Return a plain value, or tensors on the CPU, of each process."""
    if not _joined:
        return [value]
    values: List[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def local_main_first() -> Iterator[None]:
    """Have one process of each machine go through a `with` block before the others there do.

    For what it leaves on the disk: files that it downloads, and what it finds out of files and remembers.
    """
    waits = bool(_joined) and int(os.environ["LOCAL_RANK"]) > 0
    if waits:
        synchronize()
    try:
        yield
    finally:  # the others meet the same error
        if not waits:
            synchronize()


def check_same(what: str, seen: str) -> None:
    """Refuse to go on if not all processes see the same of something that each of them reads for itself.

    Args:
        what: for the message.
        seen: what tells one state of it from another.

    Raises:
        UserError: another process sees something else.
    """
    of_all = all_gather(seen)
    for number, other in enumerate(of_all):
        if other != of_all[0]:
            raise UserError(
                f"{what} is not the same for all processes: {of_all[0]} for process 0, {other} for process {number};"
                " give every machine the same files"
            )


def broadcast(value: Any) -> Any:
    """Return the first process's value, as plain values and tensors on the CPU."""
    if not _joined:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def run_on_main(action: Callable[[], Any]) -> Any:
    """Have the first process do something, and return what it returned; what it raised, all raise."""
    if not _joined:
        return action()
    result: Any = None
    error: Optional[Exception] = None
    if is_main_process():
        try:
            result = action()
        except Exception as raised:
            error = raised
    told = broadcast((result, None if error is None else _portable(error)))
    if error is not None:
        raise error
    if told[1] is not None:
        raise told[1]
    return told[0]


def _portable(error: Exception) -> Exception:
    """An error that can be sent: one that is not the user's gets its traceback from the first process alone."""
    if isinstance(error, UserError):
        return UserError(*error.faults)
    return OSError(*error.args) if isinstance(error, OSError) else UserError(f"{type(error).__name__}: {error}")


def all_reduce_max(number: int) -> int:
    """Return the largest of the processes' numbers."""
    if not _joined:
        return number
    box = torch.tensor(int(number))
    boxes = [torch.empty_like(box) for _ in range(get_world_size())]
    dist.all_gather(boxes, box)  # which gloo does faster than a reduction
    return int(max(boxes))


def synchronize() -> None:
    """Return when all processes have come here."""
    all_reduce_max(0)


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, on any device; without a gradient."""
    if not _joined:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather_with_grad(*tensors: Tensor) -> Tuple[Tensor, ...]:
    """Return for each tensor `[b, …]` that of all processes, `[B, …]`; for losses that relate the images of a batch.

    The gradient of a process's own images is summed over what all processes make of them. Floating-point tensors
    become float32. For one process the tensors are returned as they are.
    """
    if not _joined:
        return tensors
    sizes = all_gather(len(tensors[0]))
    return tuple(_Gather.apply(t.float() if t.is_floating_point() else t, sizes) for t in tensors)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: List[int]) -> Tensor:
        ctx.own = slice(sum(sizes[: get_rank()]), sum(sizes[: get_rank() + 1]))
        filled = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        filled[: len(tensor)] = tensor
        parts = [torch.empty_like(filled) for _ in sizes]
        dist.all_gather(parts, filled)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        return all_reduce(grad.contiguous())[ctx.own], None


def local_rows(tensor: Tensor, size: int) -> Tensor:
    """Return this process's `size` rows of a tensor `[B, …]` whose rows are those of all processes."""
    if not _joined:
        return tensor
    start = sum(all_gather(size)[: get_rank()])
    return tensor[start : start + size]
