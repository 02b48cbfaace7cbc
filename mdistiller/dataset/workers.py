"""Worker processes that end before their time."""

from __future__ import annotations

from typing import Iterable, Iterator, TypeVar

from ..errors import UserError

T = TypeVar("T")
MARK = "DataLoader worker"  # how PyTorch's RuntimeError on a dead process begins


def explanation(error: BaseException) -> str:
    """Return what happened, in one line, if `error` is PyTorch's on a worker process that died, else nothing."""
    if not (isinstance(error, RuntimeError) and str(error).startswith(MARK)):
        return ""
    reason = " ".join(str(error).split())
    return (
        f"a process that reads images died ({reason[:160]}); most often memory ran out: set DATASET.NUM_WORKERS or"
        " SOLVER.BATCH_SIZE lower, give a container more shared memory (--shm-size), and continue with --resume"
    )


def deaths_explained(batches: Iterable[T]) -> Iterator[T]:
    """Yield what a `DataLoader` gives, and turn PyTorch's error on a dead worker process into a UserError."""
    try:
        yield from batches
    except RuntimeError as error:
        line = explanation(error)
        if not line:
            raise
        raise UserError(line) from error
