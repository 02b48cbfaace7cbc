"""How the errors of several processes are reported: once if all processes meet the same, one line each otherwise."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Iterator

import torch.distributed as dist

from .errors import UserError, one_line

REPORT_SECONDS = 3  # how long the processes wait for each other to compare their errors


@contextmanager
def reported_once(store: dist.Store, rank: int, world_size: int) -> Iterator[None]:
    """Let only the main process report a UserError that all processes raise within a `with` block.

    Args:
        store: the store that the processes share, through which they compare their messages.

    Raises:
        SystemExit: with status 2, in place of a UserError that the main process reports.
        UserError: any other UserError, or this process lost the connection to the others.
    """
    try:
        yield
    except UserError as error:
        if _main_reports(store, str(error), rank, world_size):
            raise SystemExit(2) from None
        raise
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise UserError(
            f"process {rank} of {world_size} lost the connection to the others ({one_line(error)}); the first error"
            " that another process printed is the cause"
        ) from None


def _main_reports(store: dist.Store, message: str, rank: int, world_size: int) -> bool:
    """Return whether this is another process than the main process, and the main process has the same message.

    The store may end with the main process, so the main process waits until the others have read its message. torchrun
    kills all processes when the first one exits, so the others then wait for the main process to exit.
    """
    timeout = timedelta(seconds=REPORT_SECONDS)
    try:
        if rank == 0:
            store.set("message of rank 0", message)
            store.wait([f"read by rank {other}" for other in range(1, world_size)], timeout)
            return False
        store.wait(["message of rank 0"], timeout)
        same = bool(store.get("message of rank 0").decode() == message)
        store.set(f"read by rank {rank}", "")
    except (RuntimeError, ValueError):  # the others met no error, or have exited
        return False
    if same:
        with suppress(RuntimeError, ValueError):
            store.wait(["never set"], timeout)
    return same


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, getattr(dist, "DistError", ())) or "gloo" in str(error)


def to_sendable(error: Exception) -> Exception:
    """Return an exception that can be pickled. Only the main process shows the traceback of an unexpected error."""
    if isinstance(error, UserError):
        return UserError(*error.faults)
    if isinstance(error, OSError):
        return OSError(*error.args) if error.errno is None else OSError(error.errno, error.strerror, error.filename)
    return UserError(f"{type(error).__name__}: {error}")
