"""Worker processes: those that outlast signals, and those that end before their time."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import weakref
from contextlib import contextmanager
from multiprocessing import queues
from multiprocessing.context import BaseContext
from typing import Any, Iterable, Iterator, TypeVar

from ...errors import UserError

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


class _Queue(queues.Queue):
    """A queue of a process that ends when it cannot send what it read, which would be waited for without end."""

    @staticmethod
    def _on_queue_feeder_error(error: Exception, item: Any) -> None:
        if multiprocessing.parent_process() is None:
            if not isinstance(error, BrokenPipeError):  # else the reader has died, which is told where its batch lacks
                queues.Queue._on_queue_feeder_error(error, item)  # type: ignore[attr-defined]
            return
        os.write(2, f"a process that reads images cannot hand them over: {' '.join(str(error).split())}\n".encode())
        os._exit(1)


class _Event:
    """An event without a lock. A process that was killed while it held the lock would make `set` wait for ever."""

    def __init__(self, context: BaseContext) -> None:
        self._reader, self._writer = context.Pipe(duplex=False)

    def set(self) -> None:
        if not self.is_set():
            self._writer.send_bytes(b"set")

    def is_set(self) -> bool:
        return self._reader.poll()


_enduring: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # process: the one that started it


def enduring() -> BaseContext:
    """Return what starts processes for a `DataLoader` that may `leave_signals`, and queues that never fall silent.

    Python would have them end by SIGTERM, and wait for them, before this program ends; they are killed instead.
    """
    context: Any = type(multiprocessing.get_context(multiprocessing.get_start_method()))

    class Noting(context):
        def Process(self, *args: Any, **kwargs: Any) -> Any:
            process = super().Process(*args, **kwargs)
            _enduring[process] = os.getpid()
            return process

        def Queue(self, maxsize: int = 0) -> Any:
            return _Queue(maxsize, ctx=self.get_context())

        def Event(self) -> Any:
            return _Event(self.get_context())

    return Noting()


def leave_signals(worker: int) -> None:
    """Ctrl-C and schedulers signal every process, but what the trainer does then needs the batches of its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while processes start, who inherit that, until they `leave_signals`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register
def end_all() -> None:
    """Kill what `enduring` started, be it idle or hung in a read; from the main thread."""
    running = [p for p, parent in list(_enduring.items()) if parent == os.getpid() and p.is_alive()]
    if not running or not hasattr(signal, "SIGCHLD"):
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises when one dies
    for process in running:
        process.kill()
    for process in running:
        process.join()
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
