"""Worker processes and the end of the program that reads with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from tests.conftest import REPO, make_image_folder

# streams, with processes, from an image folder; those that read may be made to hang, without a look at signals
SCRIPT = """
import multiprocessing.process, os, resource, signal, sys, time
from mdistiller.cli import run
from mdistiller.dataset import FileSplit, get_dataset
from mdistiller.engine.cfg import load_cfg

load = FileSplit.load

def slow(self, index, look):
    os.write(1, b"reading\\n")  # whole, though two processes write
    time.sleep(600)

train, *_ = get_dataset(load_cfg(None, [*"DATASET.TYPE imagefolder DATASET.ROOT images".split(),
    *"DATASET.INPUT_SIZE 16 DATASET.IN_MEMORY no SOLVER.BATCH_SIZE 4".split()]))
if sys.argv[1] == "early":  # a signal to every process while they start
    def started(self, *args, start=multiprocessing.process.BaseProcess.start, **kwargs):
        start(self, *args, **kwargs)
        os.kill(self.pid, signal.SIGTERM)

    multiprocessing.process.BaseProcess.start = started
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # of files in /dev/shm too
    run(lambda: [batch for batch in train])
if sys.argv[1] == "hang":
    FileSplit.load = slow
    run(lambda: [batch for batch in train], "stopped here")
for number, batch in enumerate(train):
    if sys.argv[1] == "fail":
        raise RuntimeError("a fault of the script's")
print("done", number + 1)
"""


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen]:
    make_image_folder(tmp_path / "images")
    (tmp_path / "script.py").write_text(SCRIPT)
    call = [sys.executable, "script.py", request.param]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    piped = subprocess.PIPE
    with subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=piped, stderr=piped, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("started", "status", "out", "err"),
    [("pass", 0, "done 9\n", ""), ("early", 0, "done 9\n", ""), ("fail", 1, "", "a fault of the script's\n")],
    indirect=["started"],
)
def test_a_script_that_still_holds_its_loader_ends(started: subprocess.Popen, status: int, out: str, err: str) -> None:
    shown, said = started.communicate(timeout=60)
    assert (started.returncode, shown) == (status, out)
    assert said.endswith(err)


@pytest.mark.parametrize("started", ["hang"], indirect=True)
def test_ctrl_c_ends_a_pass_whose_workers_hang(started: subprocess.Popen) -> None:
    assert started.stdout is not None
    assert started.stdout.readline() == "reading\n"
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert (started.returncode, said) == (130, "interrupted; stopped here\n")


@pytest.mark.parametrize("started", ["full"], indirect=True)
def test_batches_that_cannot_be_handed_over_are_no_silence(started: subprocess.Popen) -> None:
    _, said = started.communicate(timeout=60)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    reasons = [reason for reason in said.splitlines() if reason != line]  # of one process or both
    assert started.returncode == 2
    assert line.startswith("error: a process that reads images died (")
    assert "(--shm-size)" in line
    assert reasons
    assert all(reason.startswith("a process that reads images cannot hand them over: unable to ") for reason in reasons)
