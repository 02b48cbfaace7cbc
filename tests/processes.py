"""Processes that tests start: read while they run, given a generous limit, killed with all that they started."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Dict, Iterator, List, Optional, Tuple, Type, Union

import psutil
import pytest

REPO = Path(__file__).resolve().parent.parent
# seconds from start to end, on a machine of any load; below pytest's own limit, so that a failure shows the output
LIMIT = 280
MARK = "MDISTILLER_TEST_PROCESS"  # the environment variable by which a process and what it started are found

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # pytest shows what was logged when a test fails, and leaves captured output alone


class Started:
    """A process in a session of its own, which ends with the `with` block.

    Both its streams are read while it runs, so that it never waits for a reader.

    Args:
        command: the program and its arguments.
        folder: to run in; by default the present one.
        environment: what to change in the environment.
    """

    def __init__(self, *command: object, folder: Union[str, Path, None] = None, **environment: str) -> None:
        self.command = [str(word) for word in command]
        self.mark = uuid.uuid4().hex
        self.deadline = time.monotonic() + LIMIT
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
        path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            self.command,
            cwd=folder,
            env={**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment, MARK: self.mark},
            stdin=subprocess.PIPE,  # a child that reads it sees its end when this process dies
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._lines: Dict[str, List[str]] = {"stdout": [], "stderr": []}
        self._more = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(name, getattr(self.process, name))) for name in self._lines
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._more:
                    self._lines[name].append(line)
                    self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def output(self, name: str) -> str:
        """Return what has come on `stdout` or `stderr` so far."""
        return "".join(self._lines[name])

    def wait_for(self, beginning: str) -> str:
        """Return the first line of either stream that begins so, once it is there; fail if it does not come."""

        def found() -> Optional[str]:
            lines = [line for lines in self._lines.values() for line in lines]
            return next((line for line in lines if line.startswith(beginning)), None)

        def done() -> bool:
            return found() is not None or not any(reader.is_alive() for reader in self._readers)

        with self._more:
            while not done() and time.monotonic() < self.deadline:
                self._more.wait(1)  # a reader that ends notifies before it is dead
        line = found()
        if line is None:
            pytest.fail(f"no line begins with {beginning!r}\n{self}")
        return line

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone, not to those that it started."""
        self.process.send_signal(number)

    def finish(self) -> Tuple[int, str, str]:
        """Wait for the end; return status, negative for a signal, stdout and stderr."""
        try:
            self.process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {LIMIT} s\n{self}")
        for reader in self._readers:
            reader.join(max(0.0, self.deadline - time.monotonic()))
            if reader.is_alive():
                pytest.fail(f"has ended, but left processes that hold its output\n{self}")
        return self.process.returncode, self.output("stdout"), self.output("stderr")

    def __str__(self) -> str:
        streams = "".join(f"--- {name}\n{self.output(name)}" for name in self._lines)
        return f"{' '.join(self.command)}\nstatus {self.process.poll()}\n{streams}"

    def __enter__(self) -> Started:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        while True:  # what is started meanwhile is found in the next round
            left = list(self._alive())
            if not left:
                break
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]
        log.info("%s", self)

    def _alive(self) -> Iterator[psutil.Process]:
        """The process and all that it started, in whatever session they are."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    yield process


def run(*command: object, folder: Union[str, Path, None] = None, **environment: str) -> Tuple[int, str, str]:
    """Run a process to its end; return status, stdout and stderr. Arguments as of `Started`."""
    with Started(*command, folder=folder, **environment) as process:
        return process.finish()


def run_python(*arguments: object, folder: Union[str, Path, None] = None, **environment: str) -> Tuple[int, str, str]:
    """`run` with this Python."""
    return run(sys.executable, *arguments, folder=folder, **environment)
