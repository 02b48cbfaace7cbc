"""Shared by the command lines: arguments, and errors as one line with exit status 2."""

from __future__ import annotations

import argparse
import atexit
import errno
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, List, NoReturn, Optional, Sequence

from .errors import UserError, dead_worker, memory_shortage
from .paths import user_path

LOST_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO)


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, refers to `--help` for the usage, and knows no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Accept `KEY VALUE` pairs. Call `parse_intermixed_args`, so that options may come before or after the pairs."""
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY VALUE", help="config keys to change, such as SOLVER.LR 0.1"
    )


def with_pair(overrides: Sequence[str], key: str, value: object) -> List[str]:
    """Return the `KEY VALUE` pairs with one more after them, unless `value` is `None`.

    A key without a value stays last, so that the error message names it.
    """
    pair = [] if value is None else [key, str(value)]
    whole = len(overrides) // 2 * 2
    return [*overrides[:whole], *pair, *overrides[whole:]]


def new_file(parser: argparse.ArgumentParser, option: str, path: str) -> Optional[Path]:
    """Return the path of a file to write after a long measurement, `None` for an empty path.

    If it is a folder, or its folder is missing or read-only, exit with an error.
    """
    if not path:
        return None
    try:
        place = user_path(path)
    except UserError as error:
        parser.error(f"{option}: {error}")
    if place.is_dir():
        parser.error(f"{option} {path} is a folder; give the name of a file")
    if not place.absolute().parent.is_dir():
        parser.error(f"{option} {path}: the folder {place.parent} does not exist; create it, or give another path")
    if not os.access(place if place.exists() else place.absolute().parent, os.W_OK):
        parser.error(f"{option} {path} is read-only; give another place")
    return place


def run(main: Callable[[], None], interrupted: str = "continue with --resume from the last saved state") -> NoReturn:
    """Run a command line and exit.

    The exit status is 0 after success, 2 after an error that the user can fix, with one line on stderr for each fault,
    and 130 after Ctrl-C. Any other exception is a bug and keeps its traceback.

    Args:
        interrupted: the advice on what to do after Ctrl-C, given in the message.
    """
    _open_streams()
    _show_notes()
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Ctrl-C must not change the status during the exit
    try:
        main()
        sys.stdout.flush()  # here, so that an error is reported
    except UserError as error:
        _exit_with_errors(*error.faults)
    except (RuntimeError, MemoryError) as error:
        # PyTorch's signal handler raises a worker's error at whatever point the main process has reached
        line = dead_worker(error) or memory_shortage(error)
        if not line:
            raise
        _exit_with_errors(line)
    except PermissionError as error:
        if error.filename is None:
            raise
        _exit_with_errors(f"{error.filename} cannot be accessed ({error.strerror}); fix its permissions")
    except OSError as error:
        if not _is_lost_output(error):
            raise
        # otherwise Python would flush the buffered output at exit, and fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit_with_errors(f"the output or a file cannot be written ({error.strerror}); {interrupted}")
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _open_streams() -> None:
    """Open the standard streams that are closed. Otherwise the next open file would receive what is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open until the process exits)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not stop a run


def _show_notes() -> None:
    """Print what the library logs at level INFO and above."""
    notes = logging.getLogger("mdistiller")
    notes.setLevel(logging.INFO)
    if not notes.handlers:
        notes.addHandler(_PrintHandler())


class _PrintHandler(logging.Handler):
    """Prints records to stdout, in order with the program's own output."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _is_lost_output(error: OSError) -> bool:
    """Return whether a write failed, in most cases to stdout. Code that writes a file reports its own errors."""
    return error.filename is None and error.errno in LOST_OUTPUT


def _exit_with_errors(*lines: str) -> NoReturn:
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
