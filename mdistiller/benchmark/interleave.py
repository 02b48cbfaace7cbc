"""Training loops that run in turns, each in a process of its own, a slice of time or steps at a time.

A loop does not know of it: its batches come through a gate, which holds back the next one when the slice is over. So
iterators, caches and prefetched batches live on from slice to slice, and what happens between epochs is timed as well.
"""

from __future__ import annotations

import math
import multiprocessing
import re
import sys
import time
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

from ..engine.speed.memory import memory_figures
from ..errors import UserError
from .hardware import wait_for

MIB = 2**20
SECONDS_TO_END = 10


class Budget(NamedTuple):
    """When a slice ends, by the first of these."""

    seconds: float = math.inf
    steps: float = math.inf


class Slice(NamedTuple):
    """What a loop did in its turn.

    Attributes:
        images: trained on.
        seconds: until the device had done them.
        host_mib: peak of the process's resident memory so far, and what its workers hold besides, in MiB.
        device_mib: peak of the memory allocated on the GPU so far, in MiB; 0 without one.
    """

    images: int
    seconds: float
    host_mib: float
    device_mib: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Gate:
    """A loop's side: its batches pass through while it is its turn.

    Args:
        pipe: to the `Side` that gives the turns.
        device: on which the loop trains.
    """

    def __init__(self, pipe: Connection, device: torch.device) -> None:
        self.pipe = pipe
        self.device = device
        self.budget: Optional[Budget] = None
        self.started = 0.0
        self.images = self.steps = 0

    def __call__(self, iterate: Callable[..., Iterable[Dict[str, Any]]]) -> Callable[..., Iterator[Dict[str, Any]]]:
        """Return a function that yields what `iterate` does, batches with a `target`, when it is its turn."""

        def batches(*args: Any, **kwargs: Any) -> Iterator[Dict[str, Any]]:
            self._wait()
            for batch in iterate(*args, **kwargs):
                self.steps += 1
                self.images += len(batch["target"])
                yield batch
                self._wait()

        return batches

    def _wait(self) -> None:
        """Go on within a slice; at its end hand in the result, and wait for the next."""
        if self.budget is not None:
            if self.steps < self.budget.steps and time.perf_counter() - self.started < self.budget.seconds:
                return
            wait_for(self.device)
            seconds = time.perf_counter() - self.started
            on_gpu = self.device.type == "cuda"
            allocated = torch.cuda.max_memory_allocated(self.device) / MIB if on_gpu else 0.0
            self.pipe.send(Slice(self.images, seconds, _host_mib(), allocated))
        else:
            self.pipe.send(None)  # ready
        self.budget = self.pipe.recv()
        self.images = self.steps = 0
        self.started = time.perf_counter()


class Side:
    """The other side: starts a process, and gives it its turns.

    Args:
        name: for messages.
        train: called in the process, with `argument` and the process's end of a pipe for its `Gate`; never returns.
    """

    def __init__(self, name: str, train: Callable[[Any, Connection], None], argument: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # a CUDA context and idle threads do not survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(train, argument, theirs))
        self.process.start()
        theirs.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def ready(self) -> None:
        """Wait until the loop asks for its first turn."""
        self._answer()

    def turn(self, budget: Budget) -> Slice:
        """Let the loop run for a slice."""
        return self._answer(budget)

    def _answer(self, *budget: Budget) -> Any:
        """Send what is given, return what the process answers.

        Raises:
            UserError: that of the process, or that it has ended.
        """
        try:
            for part in budget:
                self.pipe.send(part)
            result = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise UserError(
                f"the process of {self.name} ended with status {self.process.exitcode}; killed, for want of memory?"
            ) from None
        if isinstance(result, UserError):
            raise result
        return result


def run_in_turns(
    sides: Sequence[Side], rounds: int, budget: Budget, between: Callable[[], Any]
) -> Tuple[List[List[Slice]], List[Any]]:
    """Return each side's slices, one a round, and what `between()`, called after every round, returned.

    In a round each side runs once, in the reverse order of the round before. One more round precedes and does not
    count: the first steps tune kernels and fill caches.
    """
    for side in sides:
        side.ready()
    slices: List[List[Slice]] = [[] for _ in sides]
    others = []
    for number in range(rounds + 1):
        order = list(zip(sides, slices))
        for side, own in order if number % 2 else order[::-1]:
            own.append(side.turn(budget))
        others.append(between())
        print(f"round {number} of {rounds}" if number else "warmed up", file=sys.stderr, flush=True)
    return [own[1:] for own in slices], others[1:]


def _serve(train: Callable[[Any, Connection], None], argument: Any, pipe: Connection) -> None:
    # a spawned process would spawn its workers too, which import everything anew, unlike those of a run of its own
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    try:
        with redirect_stdout(sys.stderr):  # what a loop says does not belong among the figures
            train(argument, pipe)
    except UserError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # no more turns


def _host_mib() -> float:
    """Return the peak of this process's resident memory, and what its child processes hold for themselves."""
    total = memory_figures(torch.device("cpu"))["peak_memory_mib"]
    for child in multiprocessing.active_children():
        total += _kibibytes(f"/proc/{child.pid}/smaps_rollup", "Private_(?:Clean|Dirty)") / 1024
    return total


def _kibibytes(file: str, entry: str) -> float:
    try:
        return float(sum(map(int, re.findall(rf"^{entry}:\s+(\d+) kB", Path(file).read_text(), re.M))))
    except OSError:  # a system without it, or a process that has just ended
        return 0.0
