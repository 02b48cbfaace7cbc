"""Loops that run in turns: the result of a turn, and that nothing restarts between turns."""

import multiprocessing

import pytest
import torch

from mdistiller.benchmark import interleave
from mdistiller.benchmark.interleave import BatchGate, LoopProcess, TurnBudget, TurnResult, run_interleaved, run_loop
from mdistiller.errors import UserError


class Pipe:
    """A pipe that gives these turns, and is then closed."""

    def __init__(self, *budgets):
        self.budgets = list(budgets)
        self.sent = []

    def send(self, what):
        self.sent.append(what)

    def recv(self):
        if not self.budgets:
            raise EOFError
        return self.budgets.pop(0)


def loop(gate, sizes, epochs):
    """Run epochs without end, with batches of these sizes; `epochs` gets an entry per started iterator."""

    def epoch():
        epochs.append(len(epochs))
        for size in sizes:
            yield {"target": torch.zeros(size)}

    batches = gate(epoch)
    while True:
        for _ in batches():
            pass


def test_a_turn_ends_after_its_steps_and_the_next_continues_there():
    pipe, epochs = Pipe(TurnBudget(steps=2), TurnBudget(steps=2), TurnBudget(steps=3)), []
    with pytest.raises(EOFError):
        loop(BatchGate(pipe, torch.device("cpu")), (5, 3, 1), epochs)
    assert pipe.sent[0] is None  # ready, before the first batch is read
    assert [part.images for part in pipe.sent[1:]] == [5 + 3, 1 + 5, 3 + 1 + 5]
    assert epochs == [0, 1, 2]
    assert all(part.seconds > 0 and part.device_mib == 0 for part in pipe.sent[1:])
    assert pipe.sent[1].host_mib > 50  # torch itself takes more


def test_a_turn_ends_after_its_seconds(monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(interleave.time, "perf_counter", lambda: next(clock))
    pipe = Pipe(TurnBudget(seconds=10))
    with pytest.raises(EOFError):
        loop(BatchGate(pipe, torch.device("cpu")), (2, 2, 2, 2, 2, 2), [])
    # the clock is read at the start, after each batch (4, 8, 12 s), and once more at the end
    assert pipe.sent[1].images == 6
    assert pipe.sent[1].seconds == 16
    assert pipe.sent[1].rate == 6 / 16


class Alternate:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_until_ready(self):
        self.log.append(f"{self.name} ready")

    def run_turn(self, budget):
        self.log.append(self.name)
        return TurnResult(len(self.log), 1.0, 0.0, 0.0)


def test_loops_alternate_and_the_first_round_does_not_count(capsys):
    log = []
    loops = [Alternate("a", log), Alternate("b", log)]
    results, round_results = run_interleaved(loops, 3, TurnBudget(steps=1), lambda: log.append("|") or len(log))
    assert log == ["a ready", "b ready", *"bbaa|ab|ba|ab|"]  # the second turn of the first round compiles the rest
    assert [[part.images for part in own] for own in results] == [[8, 12, 14], [9, 11, 15]]
    assert round_results == [10, 13, 16]
    rounds = [f"round {n} of 3: a {a}.0, b {b}.0 images/s" for n, a, b in ((1, 8, 9), (2, 12, 11), (3, 14, 15))]
    assert capsys.readouterr().err.splitlines() == ["warmed up", *rounds]


def in_another_process(sizes, pipe):
    as_usual = multiprocessing.get_all_start_methods()[0]
    if multiprocessing.get_start_method() != as_usual:
        raise UserError(f"workers would start by {multiprocessing.get_start_method()}, not by {as_usual}")
    loop(BatchGate(pipe, torch.device("cpu")), sizes, [])


def test_another_process_runs_in_turns_and_its_end_is_reported():
    message = "^the process of the loop ended with status -9; was it killed because memory ran out"
    with LoopProcess("the loop", in_another_process, (4, 2)) as process:
        process.wait_until_ready()
        assert [process.run_turn(TurnBudget(steps=3)).images for _ in range(2)] == [10, 8]
        process.process.kill()
        with pytest.raises(UserError, match=message):
            process.run_turn(TurnBudget(steps=3))


def test_a_process_ends_after_its_turns_or_reports_its_error(capsys):
    pipe = Pipe(TurnBudget(steps=1))
    run_loop(in_another_process, (4, 2), pipe)
    assert [part and part.images for part in pipe.sent] == [None, 4]

    def fails(argument, pipe):
        print("about to fail")
        raise UserError(f"no {argument}; give another")

    run_loop(fails, "teacher", pipe)
    assert capsys.readouterr() == ("", "about to fail\n")  # stdout is for the table
    process = LoopProcess.__new__(LoopProcess)
    process.pipe = Pipe(pipe.sent[-1])
    with pytest.raises(UserError, match="^no teacher; give another$"):
        process.wait_until_ready()
