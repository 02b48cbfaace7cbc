"""Processes for tests: their output is read while they run, and they are killed with all processes they started."""

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
# seconds, generous for a busy machine, but below pytest's own limit, so that a failure shows the output
LIMIT = 280
MARK = "MDISTILLER_TEST_PROCESS"  # environment variable that marks a process and all processes it started

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # pytest shows the log of a failed test, without changing captured output


class Started:
    """A process in a session of its own; a context manager that kills it and all processes it started.

    Both output streams are read while it runs, so that it never blocks on a full pipe.

    Args:
        command: the program and its arguments.
        folder: its working directory; by default the current one.
        environment: variables to set.
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
            stdin=subprocess.PIPE,  # a child that reads it gets end-of-file when this process dies
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
        """Return the output on `stdout` or `stderr` so far."""
        return "".join(self._lines[name])

    def wait_for(self, beginning: str) -> str:
        """Wait for a line of either stream that starts with `beginning`, and return it. Fail if there is none."""

        def found() -> Optional[str]:
            lines = [line for lines in self._lines.values() for line in lines]
            return next((line for line in lines if line.startswith(beginning)), None)

        def done() -> bool:
            return found() is not None or not any(reader.is_alive() for reader in self._readers)

        with self._more:
            while not done() and time.monotonic() < self.deadline:
                self._more.wait(1)  # not longer, because a reader notifies shortly before it ends
        line = found()
        if line is None:
            with suppress(subprocess.TimeoutExpired):  # the message shows the exit status
                self.process.wait(max(0.0, self.deadline - time.monotonic()))
            pytest.fail(f"no line begins with {beginning!r}\n{self}")
        return line

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, but not to processes that it started."""
        self.process.send_signal(number)

    def finish(self) -> Tuple[int, str, str]:
        """Wait for the end; return exit status (negative for a signal), stdout and stderr."""
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
        while True:  # the next round finds processes that were started in the meantime
            left = list(self._alive())
            if not left:
                break
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
        self.process.kill()
        self.process.wait()  # also needed if it had already ended
        for reader in self._readers:
            reader.join()
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]
        log.info("%s", self)

    def _alive(self) -> Iterator[psutil.Process]:
        """Yield the process and all processes that it started, in any session."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    yield process


def run(*command: object, folder: Union[str, Path, None] = None, **environment: str) -> Tuple[int, str, str]:
    """Run a process until it ends; return exit status, stdout and stderr. The arguments are those of `Started`."""
    with Started(*command, folder=folder, **environment) as process:
        return process.finish()


def run_python(*arguments: object, folder: Union[str, Path, None] = None, **environment: str) -> Tuple[int, str, str]:
    """`run` with the current Python interpreter."""
    return run(sys.executable, *arguments, folder=folder, **environment)
