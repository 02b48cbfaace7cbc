"""What the command lines share: arguments, and errors as one line with exit status 2."""

from __future__ import annotations

import argparse
import atexit
import errno
import io
import logging
import os
import signal
import sys
from typing import Callable, NoReturn

from .errors import UserError, memory_shortage
from .paths import usable


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Accept `KEY VALUE` pairs; use `parse_intermixed_args`, so that options may stand before or after them."""
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to change, as SOLVER.LR 0.1")


def check_new_file(parser: argparse.ArgumentParser, option: str, path: str) -> None:
    """Refuse a file that cannot be written in the end, before anything is measured; `path` may be empty."""
    if not path:
        return
    try:
        place = usable(path)
    except UserError as error:
        parser.error(f"{option}: {error}")
    if place.is_dir():
        parser.error(f"{option} {path} is a folder; give the name of a file")
    if not place.absolute().parent.is_dir():
        parser.error(f"{option} {path}: there is no such folder")


class _Print(logging.Handler):
    """Shows the library's notes among the run's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _open_streams() -> None:
    """Have all three standard streams open, or the next file takes the number of a closed one, and what it is sent."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that a terminal cannot show must not stop a run


def run(main: Callable[[], None], interrupted: str = "continue with --resume from the last saved state") -> NoReturn:
    """Run a command line; a `UserError` becomes a line on stderr for each fault, and exit status 2.

    Args:
        interrupted: what to do after Ctrl-C.
    """
    _open_streams()
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # by then the status is settled
    notes = logging.getLogger("mdistiller")
    notes.setLevel(logging.INFO)
    if not notes.handlers:
        notes.addHandler(_Print())
    try:
        main()
    except UserError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        from .dataset.loading.workers import explanation

        # PyTorch's signal handler raises the one wherever the main process is by then
        line = explanation(error) or memory_shortage(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # a file's fault has its name, and becomes a UserError where the file is written
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what waits in it would fail again at the exit
        print(f"error: the output cannot be written ({error.strerror}); {interrupted}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
