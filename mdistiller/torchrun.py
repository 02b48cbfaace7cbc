"""What torchrun tells the processes that it starts, through environment variables."""

from __future__ import annotations

import os
import socket

from .errors import UserError

GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def in_group() -> bool:
    """Return whether torchrun started this process as one of several.

    Raises:
        UserError: `WORLD_SIZE` is not a number, or the other variables of a group are missing or not numbers.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit():
        raise UserError(f"WORLD_SIZE is {size!r}; expected the number of processes, as torchrun sets it")
    if int(size) <= 1 or not {"RANK", "LOCAL_RANK"} & set(os.environ):  # a scheduler may set WORLD_SIZE alone
        return False
    missing = [name for name in GROUP_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set but not {', '.join(missing)}; start several processes with torchrun")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        if not os.environ[name].isdigit():
            raise UserError(f"{name} is {os.environ[name]!r}; expected a number, as torchrun sets it")
    return True


def job_name() -> str:
    """Return a name for the torchrun job that started this process, or an empty string without one.

    The name stays the same when torchrun restarts its workers. It is torchrun's `--rdzv-id`, which all nodes share;
    without that option, it is made of the host name, process id and start time of torchrun's own process.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return ""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run_id if run_id != "none" else f"{socket.gethostname()} {os.getppid()} {_start_time(os.getppid())}"


def _start_time(pid: int) -> str:
    """Return when a process started, to tell it from a later process with the same id."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_restart() -> bool:
    """Return whether torchrun has restarted its workers."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
