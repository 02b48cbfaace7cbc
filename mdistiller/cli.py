"""What the command lines share: arguments, and errors as one line with exit status 2."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Callable, NoReturn

from .errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Accept `KEY VALUE` pairs; use `parse_intermixed_args`, so that options may stand before or after them."""
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to change, as SOLVER.LR 0.1")


class _Print(logging.Handler):
    """Shows the library's notes among the run's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def run(main: Callable[[], None], interrupted: str = "continue with --resume from the last saved state") -> NoReturn:
    """Run a command line; a `UserError` becomes a line on stderr for each fault, and exit status 2.

    Args:
        interrupted: what to do after Ctrl-C.
    """
    notes = logging.getLogger("mdistiller")
    notes.setLevel(logging.INFO)
    if not notes.handlers:
        notes.addHandler(_Print())
    try:
        main()
    except UserError as error:
        for fault in str(error).splitlines():
            print(f"error: {' '.join(fault.split())}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        from .dataset.workers import explanation

        # PyTorch's signal handler raises it wherever the main process is by then
        if not explanation(error):
            raise
        print(f"error: {explanation(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
