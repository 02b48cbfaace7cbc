"""Worker processes, and the end of a program that uses them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Iterator

import pytest

from tests.conftest import make_image_folder
from tests.processes import Started

# streams an image folder with worker processes; an argument makes them hang, fail or receive signals
SCRIPT = """
import atexit, multiprocessing.process, multiprocessing.synchronize, os, resource, signal, sys
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from mdistiller.cli import run
from mdistiller.dataset import FileSplit, get_dataset
from mdistiller.engine.cfg import load_cfg

load = FileSplit.load

def slow(self, index, look):
    os.write(1, b"reading\\n")  # one write, so that two processes do not mix their lines
    while True:
        signal.pause()

train, *_ = get_dataset(load_cfg(None, [*"DATASET.TYPE imagefolder DATASET.ROOT images".split(),
    *"DATASET.INPUT_SIZE 16 DATASET.IN_MEMORY no SOLVER.BATCH_SIZE 4".split()]))
if sys.argv[1] == "late":  # on one core, too
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if sys.argv[1] == "early":  # signal each worker while it starts
    def started(self, *args, start=multiprocessing.process.BaseProcess.start, **kwargs):
        start(self, *args, **kwargs)
        os.kill(self.pid, signal.SIGTERM)

    multiprocessing.process.BaseProcess.start = started
if sys.argv[1] == "late":  # as PyTorch 2.4, which waits for its workers at exit
    def begin(self, *args, init=_MultiProcessingDataLoaderIter.__init__):
        init(self, *args)
        atexit.register(lambda: print("left", sum(worker.is_alive() for worker in self._workers)))

    _MultiProcessingDataLoaderIter.__init__ = begin
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # of files in /dev/shm too
    run(lambda: [batch for batch in train])
if sys.argv[1] == "locked":  # the workers hang while they hold the lock of the event that tells them to end
    def hold(event):
        event._cond.acquire()
        slow(None, None, None)

    multiprocessing.synchronize.Event.is_set = hold
if sys.argv[1] == "locked":
    FileSplit.load = slow
    run(lambda: [batch for batch in train], "stopped here")
for number, batch in enumerate(train):
    if sys.argv[1] == "fail":
        raise RuntimeError("a fault of the script's")
print("done", number + 1)
"""


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Started]:
    make_image_folder(tmp_path / "images")
    (tmp_path / "script.py").write_text(SCRIPT)
    with Started(sys.executable, "script.py", request.param, folder=tmp_path) as process:
        yield process


@pytest.mark.parametrize(
    ("started", "status", "out", "err"),
    [
        ("late", 0, "done 9\nleft 0\n", ""),
        ("early", 0, "done 9\n", ""),
        ("fail", 1, "", "a fault of the script's\n"),
    ],
    indirect=["started"],
)
def test_a_script_that_still_holds_its_loader_ends(started: Started, status: int, out: str, err: str) -> None:
    ended_with, shown, said = started.finish()
    assert (ended_with, shown) == (status, out)
    assert said.endswith(err) if err else not said


@pytest.mark.parametrize("started", ["locked"], indirect=True)
def test_ctrl_c_ends_a_pass_whose_workers_hang(started: Started) -> None:
    started.wait_for("reading")
    started.send_signal(signal.SIGINT)
    status, _, said = started.finish()
    assert (status, said) == (130, "interrupted; stopped here\n")


@pytest.mark.parametrize("started", ["full"], indirect=True)
def test_batches_that_cannot_be_handed_over_are_no_silence(started: Started) -> None:
    status, _, said = started.finish()
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    reasons = [reason for reason in said.splitlines() if reason != line]  # of one process or both
    assert status == 2
    assert line.startswith("error: a DataLoader worker died (")
    assert "(--shm-size)" in line
    assert reasons
    assert all(reason.startswith("a process that reads images cannot send them: unable to ") for reason in reasons)
