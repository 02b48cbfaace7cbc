"""SIGINT and SIGTERM: finish the step, save the state, and exit with status 75."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any, Dict, Optional, Sequence

from ... import distributed

STATUS = 75  # EX_TEMPFAIL, "try again later"; 130 and 143 mean that a signal killed the command


class RunStopped(SystemExit):
    """A signal arrived, and the run is at a point where it can be saved; exits with `STATUS`."""

    def __init__(self, name: str) -> None:
        super().__init__(STATUS)
        self.name = name

    def __str__(self) -> str:
        return f"stopped by {self.name}"


class StopSignals:
    """A context manager that records SIGINT and SIGTERM for `check`. A second SIGINT raises KeyboardInterrupt.

    In other threads, no handlers are installed, and signals behave as before.

    Attributes:
        received: the name of the received signal, or `None`.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.signals = signals
        self.received: Optional[str] = None
        self._before: Dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number).name
        # os.write, because the signal may have interrupted print, which is not reentrant
        with suppress(OSError):
            os.write(2, f"\n{self.received}: finishing the step and saving (Ctrl-C: stop without saving)\n".encode())

    def check(self) -> None:
        """Raise RunStopped if any process of the group has received a signal."""
        number = distributed.all_reduce_max(signal.Signals[self.received].value if self.received else 0)
        if number:
            raise RunStopped(signal.Signals(number).name)
