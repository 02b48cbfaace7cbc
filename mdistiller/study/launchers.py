"""Where the runs of a study are started: processes on this machine, or jobs of a cluster by submitit."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Sequence

import torch

from ..errors import UserError, missing_libraries, one_line
from .job import Job, run_job


class Handle(Protocol):
    """A started run: a `concurrent.futures.Future` or a submitit job."""

    def done(self) -> bool:
        """Whether the run has ended."""

    def result(self) -> Any:
        """Return what `run_job` returned."""


class Launcher(Protocol):
    """Starts runs.

    Attributes:
        limit: the number of runs that may be started at the same time.
    """

    limit: int

    def submit(self, job: Job) -> Handle:
        """Start a run."""

    def stop(self) -> None:
        """Make the runs save their state and end, and wait for them."""


class LocalLauncher:
    """Starts processes on this machine. With several GPUs, each process gets the one that has been free for longest.

    Args:
        jobs: the number of processes at the same time.
    """

    def __init__(self, jobs: int) -> None:
        self.limit = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._processes: List[subprocess.Popen] = []
        self._stopping = False
        self._devices: queue.SimpleQueue[Dict[str, str]] = queue.SimpleQueue()
        for _, device in zip(range(jobs), itertools.cycle(visible_devices())):
            self._devices.put(device)

    def submit(self, job: Job) -> Handle:
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> str:
        device = self._devices.get()
        try:
            return run_job(job, device, self._keep)
        finally:
            self._devices.put(device)

    def _keep(self, process: subprocess.Popen) -> None:
        self._processes.append(process)
        if self._stopping:  # since the run was submitted
            _end(process)

    def stop(self) -> None:
        self._stopping = True
        for process in self._processes:
            _end(process)
        self._pool.shutdown()


def _end(process: subprocess.Popen) -> None:
    """Make a run save its state and end; see `run_job`."""
    assert process.stdin is not None
    process.stdin.close()


def visible_devices() -> Sequence[Dict[str, str]]:
    """Return the variables that select each of several GPUs, or no variables without a choice."""
    if torch.cuda.device_count() < 2:
        return [{}]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else map(str, range(torch.cuda.device_count()))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


class ClusterJob:
    """`run_job` for submitit. A job that reaches its time limit, or is preempted, is queued again and continues."""

    def __call__(self, job: Job) -> str:
        return run_job(job)

    def checkpoint(self, job: Job) -> Any:
        """Return what submitit queues in place of a job that the cluster is about to end."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class ClusterLauncher:
    """Submits jobs by submitit.

    Args:
        cluster: `slurm`, or `local` or `debug`, which run the jobs on this machine.
        folder: the folder for submitit's files, shared by all machines of the cluster.
        parameters: arguments of `submitit.AutoExecutor.update_parameters`, such as `timeout_min` or `slurm_partition`.
        jobs: the number of jobs in the queue at the same time.

    Raises:
        UserError: submitit is not installed, the cluster cannot be reached, or a parameter is unknown.
    """

    def __init__(self, cluster: str, folder: Path, parameters: Dict[str, Any], jobs: int) -> None:
        try:
            import submitit
        except ImportError:
            raise missing_libraries("--cluster", "submitit") from None
        self.limit = jobs
        self._jobs: List[Any] = []
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            self._executor.update_parameters(name="mdistiller", **parameters)
        except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
            raise UserError(f"--cluster {cluster}: {one_line(error)}") from None

    def submit(self, job: Job) -> Handle:
        self._jobs.append(self._executor.submit(ClusterJob(), job))
        return self._jobs[-1]

    def stop(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()


def make_launcher(cluster: Optional[str], folder: Path, parameters: Dict[str, Any], jobs: Optional[int]) -> Launcher:
    """Return the launcher for the options of the command line.

    Args:
        cluster: `slurm`, `local` or `debug`; `None` for processes on this machine.
        folder: the folder of the study.
        parameters: the parameters of the cluster, see `ClusterLauncher`.
        jobs: the number of runs at the same time; by default one process, or all jobs of a cluster.
    """
    if cluster is None:
        return LocalLauncher(jobs or 1)
    return ClusterLauncher(cluster, folder / "submitit", parameters, jobs or 10**6)
