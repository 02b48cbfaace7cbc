"""One run of a study, in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

from ..engine.run.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """What a process needs to run a cell.

    Attributes:
        name: the name of the cell.
        arguments: the arguments of `tools/train.py`.
        run: the folder of the run. A run that has saved a state is continued, any other is restarted.
        log: the file that the output of the run is appended to.
        folder: the working directory of the process.
        environment: the environment variables to set.
    """

    name: str
    arguments: Tuple[str, ...]
    run: RunFolder
    log: Path
    folder: Path
    environment: Dict[str, str]

    def command_arguments(self) -> Tuple[str, ...]:
        """Return the command-line arguments of `tools/train.py`, plus `--resume` or `--overwrite` if there is a run.

        The state of the folder decides on each call, because a cluster may start the same job twice.
        """
        if self.run.continues(resume=True, overwrite=False):
            return (*self.arguments, "--resume")
        return (*self.arguments, "--overwrite") if self.run.path.exists() else self.arguments

    def shell(self) -> str:
        """Return the command that starts the run by hand."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(["python3", "tools/train.py", *self.command_arguments()])])


def run_job(
    job: Job, devices: Optional[Dict[str, str]] = None, started: Optional[Callable[[subprocess.Popen], None]] = None
) -> str:
    """Run a cell to its end; return an empty string, or what went wrong in one line.

    The run saves its state and stops when this process ends, however that happens: its standard input is a pipe, which
    then closes.

    Args:
        devices: the environment variables that choose the devices.
        started: a function that is called with the process.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as log:
        print(f"$ {job.shell()}", file=log, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "mdistiller.commands.study_job", *job.command_arguments()],
            cwd=job.folder,
            env={**os.environ, **job.environment, **(devices or {})},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        if started is not None:
            started(process)
        status = process.wait()
        assert process.stdin is not None
        process.stdin.close()
    if status == 0:
        return ""
    lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"{lines[-1].partition('error: ')[2] or lines[-1]} ({how}; {job.log})"
