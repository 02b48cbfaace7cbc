"""Worker processes that read images: signals, unexpected deaths, and the end of the program."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import warnings
import weakref
from contextlib import contextmanager
from multiprocessing import queues
from multiprocessing.context import BaseContext
from typing import Any, Iterable, Iterator, TypeVar

from ...errors import UserError, dead_worker, one_line

T = TypeVar("T")

warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores; harmless


def explain_worker_deaths(batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches of a `DataLoader`; turn PyTorch's error about a dead worker into a UserError."""
    try:
        yield from batches
    except RuntimeError as error:
        line = dead_worker(error)
        if not line:
            raise
        raise UserError(line) from error


class _Queue(queues.Queue):
    """Exits if a batch cannot be sent; otherwise the main process would wait forever."""

    @staticmethod
    def _on_queue_feeder_error(error: Exception, item: Any) -> None:
        if multiprocessing.parent_process() is None:
            if not isinstance(error, BrokenPipeError):  # a worker that died is reported elsewhere
                queues.Queue._on_queue_feeder_error(error, item)  # type: ignore[attr-defined]
            return
        os.write(2, f"a process that reads images cannot send them: {one_line(error)}\n".encode())
        os._exit(1)


class _Event:
    """An event without a lock; a worker killed while it held the lock would make `set` wait forever."""

    def __init__(self, context: BaseContext) -> None:
        self._reader, self._writer = context.Pipe(duplex=False)

    def set(self) -> None:
        if not self.is_set():
            self._writer.send_bytes(b"set")

    def is_set(self) -> bool:
        return self._reader.poll()


# worker process → ID of the process that started it
_started_by: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def worker_context() -> BaseContext:
    """Return the multiprocessing context of a `DataLoader` whose workers `ignore_signals`.

    At exit Python would send SIGTERM, which they ignore, and wait for them; `kill_workers` kills them first.
    """
    context: Any = type(multiprocessing.get_context(multiprocessing.get_start_method()))

    class WorkerContext(context):
        def Process(self, *args: Any, **kwargs: Any) -> Any:
            process = super().Process(*args, **kwargs)
            _started_by[process] = os.getpid()
            return process

        def Queue(self, maxsize: int = 0) -> Any:
            return _Queue(maxsize, ctx=self.get_context())

        def Event(self) -> Any:
            return _Event(self.get_context())

    return WorkerContext()


def ignore_signals(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a worker: they reach every process, but the trainer finishes its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM while workers start; they inherit the block until they `ignore_signals`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_workers_first_at_exit() -> None:
    """At exit, call `kill_workers` before what PyTorch has registered until now.

    With persistent workers and pinned memory, PyTorch 2.4 waits five seconds for each worker and then sends SIGTERM.
    """
    atexit.unregister(kill_workers)
    atexit.register(kill_workers)


def kill_workers() -> None:
    """Kill all workers, whether idle or stuck in a read; call it from the main thread."""
    running = [p for p, parent in list(_started_by.items()) if parent == os.getpid() and p.is_alive()]
    if not running or not hasattr(signal, "SIGCHLD"):
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises if a worker dies
    for process in running:
        process.kill()
    for process in running:
        process.join()
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
