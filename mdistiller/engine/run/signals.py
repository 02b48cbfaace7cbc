"""SIGINT and SIGTERM: finish the step, save, and end with a status of its own."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any, Dict, Optional, Sequence

from ... import distributed

STATUS = 75  # EX_TEMPFAIL: try again later. Neither 130 nor 143, by which a shell says that a signal killed the command


class RunStopped(SystemExit):
    """A signal asked for the end, and the run is where it can be saved; ends a script with `STATUS`."""

    def __init__(self, name: str) -> None:
        super().__init__(STATUS)
        self.name = name

    def __str__(self) -> str:
        return f"stopped by {self.name}"


class StopSignals:
    """While entered, SIGINT and SIGTERM are noted for `check`; a SIGINT after either raises KeyboardInterrupt.

    Outside the main thread, where Python takes no handlers, signals do what they did.

    Attributes:
        received: the signal's name, or None.
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
        # not print, which may be at work right now and cannot be entered twice
        with suppress(OSError):
            os.write(2, f"\n{self.received}: finishing the step and saving (Ctrl-C: stop at once, without)\n".encode())

    def check(self) -> None:
        """Raise RunStopped if a signal has come, to whichever process."""
        number = distributed.all_reduce_max(signal.Signals[self.received].value if self.received else 0)
        if number:
            raise RunStopped(signal.Signals(number).name)
