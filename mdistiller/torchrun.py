"""The torchrun that started this process, if one did."""

from __future__ import annotations

import os
import socket


def name() -> str:
    """Return a name of the torchrun that started this process, the same after it restarts its workers; else empty.

    That is its `--rdzv-id`, which several nodes have in common; without one, the process itself.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return ""
    given = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return given if given != "none" else f"{socket.gethostname()} {os.getppid()} {_started(os.getppid())}"


def _started(process: int) -> str:
    """When a process was started, so that a later one with its number is not taken for it."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_restart() -> bool:
    """Whether torchrun has started its workers before."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
