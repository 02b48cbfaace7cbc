"""Run training loops in turns, each in a process of its own, for a limited time or number of steps at a time.

A loop does not notice its turns. Its batches pass through a gate, which holds back the next batch when the turn is
over. So iterators, caches and prefetched batches survive from turn to turn, and the time between epochs is measured
too.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import sys
import time
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import psutil
import torch

from ..engine.speed.memory import memory_figures
from ..errors import UserError
from .hardware import synchronize_device

MIB = 2**20
EXIT_SECONDS = 10
FIRST_STEPS = 5  # a first step compiles, which may take longer than a turn, and a third one records CUDA graphs


class TurnBudget(NamedTuple):
    """The length of a turn. It ends at the first of these limits."""

    seconds: float = math.inf
    steps: float = math.inf


class TurnResult(NamedTuple):
    """What a loop did in its turn.

    Attributes:
        images: the number of training images.
        seconds: the time in seconds until the device had finished them.
        host_mib: the peak resident memory of the process so far, plus the memory of its workers, in MiB.
        device_mib: the peak allocated memory on the GPU so far, in MiB; 0 without a GPU.
    """

    images: int
    seconds: float
    host_mib: float
    device_mib: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class BatchGate:
    """Lets the batches of a loop pass while it is the loop's turn.

    Args:
        pipe: the connection to the `LoopProcess` that gives the turns.
        device: the device on which the loop trains.
    """

    def __init__(self, pipe: Connection, device: torch.device) -> None:
        self.pipe = pipe
        self.device = device
        self.budget: Optional[TurnBudget] = None
        self.started = 0.0
        self.images = self.steps = 0

    def __call__(self, iterate: Callable[..., Iterable[Dict[str, Any]]]) -> Callable[..., Iterator[Dict[str, Any]]]:
        """Return a function that yields the batches of `iterate`, dicts with a `target`, through the gate."""

        def batches(*args: Any, **kwargs: Any) -> Iterator[Dict[str, Any]]:
            self._wait_for_turn()
            for batch in iterate(*args, **kwargs):
                self.steps += 1
                self.images += len(batch["target"])
                yield batch
                self._wait_for_turn()

        return batches

    def _wait_for_turn(self) -> None:
        """Return at once during a turn. At its end, send the result and wait for the next turn."""
        if self.budget is None:
            self.pipe.send(None)  # ready
        else:
            if self.steps < self.budget.steps and time.perf_counter() - self.started < self.budget.seconds:
                return
            synchronize_device(self.device)
            seconds = time.perf_counter() - self.started
            on_gpu = self.device.type == "cuda"
            device_mib = torch.cuda.max_memory_allocated(self.device) / MIB if on_gpu else 0.0
            self.pipe.send(TurnResult(self.images, seconds, _host_mib(), device_mib))
        self.budget = self.pipe.recv()
        self.images = self.steps = 0
        self.started = time.perf_counter()


class LoopProcess:
    """A process that runs a loop in turns; a context manager that ends it.

    Args:
        name: the name of the loop, given in error messages.
        train: the function that runs the loop. It runs in the process with `argument` and a pipe for its `BatchGate`,
            and never returns.
        argument: the first argument of `train`, picklable.
    """

    def __init__(self, name: str, train: Callable[[Any, Connection], None], argument: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # a CUDA context and idle threads do not survive a fork
        self.pipe, pipe_of_loop = context.Pipe()
        self.process = context.Process(target=run_loop, args=(train, argument, pipe_of_loop))
        self.process.start()
        pipe_of_loop.close()

    def __enter__(self) -> LoopProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(EXIT_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def wait_until_ready(self) -> None:
        """Wait until the loop asks for its first turn."""
        self._receive()

    def run_turn(self, budget: TurnBudget) -> TurnResult:
        """Let the loop run for one turn."""
        return self._receive(budget)

    def _receive(self, *budget: TurnBudget) -> Any:
        """Send the budget, if any, and return the process's answer.

        Raises:
            UserError: the process raised it, or has ended.
        """
        try:
            for turn in budget:
                self.pipe.send(turn)
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise UserError(
                f"the process of {self.name} ended with status {self.process.exitcode}; was it killed because memory"
                " ran out?"
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def run_interleaved(
    loops: Sequence[LoopProcess], rounds: int, budget: TurnBudget, after_round: Callable[[], Any]
) -> Tuple[List[List[TurnResult]], List[Any]]:
    """Run several loops in rounds, in which each loop has one turn.

    The order of the loops is reversed from round to round. One more round precedes the others and does not count,
    because the first steps tune kernels and fill caches. In it, each loop takes `FIRST_STEPS` steps after its turn.

    Returns:
        the results of each loop, one per round, and the results of `after_round()`, which is called after each round.
    """
    for loop in loops:
        loop.wait_until_ready()
    results: List[List[TurnResult]] = [[] for _ in loops]
    round_results = []
    for number in range(rounds + 1):
        order = list(zip(loops, results))
        for loop, own_results in order if number % 2 else order[::-1]:
            own_results.append(loop.run_turn(budget))
            if not number:
                loop.run_turn(TurnBudget(steps=FIRST_STEPS))
        round_results.append(after_round())
        rates = ", ".join(f"{loop.name} {own_results[-1].rate:.1f}" for loop, own_results in zip(loops, results))
        text = f"round {number} of {rounds}: {rates} images/s" if number else "warmed up"
        print(text, file=sys.stderr, flush=True)
    return [own_results[1:] for own_results in results], round_results[1:]


def run_loop(train: Callable[[Any, Connection], None], argument: Any, pipe: Connection) -> None:
    """Run a loop in this process, until its pipe is closed. A UserError is sent through the pipe."""
    # a spawned process would spawn its workers too; they would import everything again, unlike in a normal run
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the table
            train(argument, pipe)
    except UserError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # there are no more turns


def _host_mib() -> float:
    """Return this process's peak resident memory, plus the memory that its child processes hold on their own."""
    total = memory_figures(torch.device("cpu"))["peak_memory_mib"]
    for child in multiprocessing.active_children():
        try:
            total += psutil.Process(child.pid).memory_full_info().uss / MIB
        except psutil.Error:  # the child has just ended, or may not be read
            continue
    return total


def spread(values: Sequence[float]) -> Dict[str, float]:
    """Return the median, quartiles and range."""
    low, median, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": median, "q1": low, "q3": high, "min": min(values), "max": max(values)}
