"""A lock on the folder of a run, so that two runs never write to it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Iterator, Set

from ...atomic_files import writing_to
from ...errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("mdistiller")

REMEDY = "wait for it, or name this one with EXPERIMENT.NAME"
_held: Set[Path] = set()  # fcntl would grant them twice to one process


@contextmanager
def locked(folder: Path, remedy: str = REMEDY) -> Iterator[None]:
    """Make `folder` and hold its lock, which the system releases when the process ends. Workers do not inherit it.

    If the file system does not support locks, a note is logged.

    Args:
        remedy: the advice for the case that the folder is in use, given in the error message.

    Raises:
        UserError: another run holds the lock, or the folder cannot be written to.
    """
    path = lock_file(folder)
    if path in _held:
        raise _in_use(folder, "this process", remedy)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        _take(file, folder, remedy)
        with suppress(OSError):  # a full disk; the text is for messages only
            os.ftruncate(file.fileno(), 0)
            # os.write has no buffer, which would fail again when the file is closed
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def check_free(folder: Path) -> None:
    """Raise a UserError if a run in another process holds the lock of `folder`; nothing is written."""
    path = lock_file(folder)
    if path not in _held and path.is_file() and os.access(path, os.W_OK):
        with path.open("r+", encoding="utf-8") as file:
            _take(file, folder, REMEDY, note=False)


def lock_file(folder: Path) -> Path:
    """Return the file that is locked. It stays after the run."""
    return Path(os.path.realpath(folder)) / ".lock"  # unlike resolve(), realpath accepts a circle of links


def _take(file: IO[str], folder: Path, remedy: str, note: bool = True) -> None:
    reason = "this system has no fcntl"
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise _in_use(folder, file.read().strip() or "another process", remedy) from None
            reason = error.strerror or str(error)
    if note:
        log.info(f"note: {folder} cannot be locked ({reason}); do not start a second run in it")


def _in_use(folder: Path, holder: str, remedy: str) -> UserError:
    return UserError(f"a run is writing to {folder} ({holder}); {remedy}")
