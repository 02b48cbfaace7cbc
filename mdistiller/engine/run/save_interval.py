"""When to save the state within an epoch: `SOLVER.CHECKPOINT_EVERY`."""

from __future__ import annotations

import re
import time
from typing import Callable

from ... import distributed


class SaveInterval:
    """Decides after which steps to save.

    Args:
        text: the interval: empty (never), `500 steps` or `10 minutes`.
        clock: a function that returns the time in seconds.

    Raises:
        ValueError: `text` has another form.
    """

    def __init__(self, text: str, clock: Callable[[], float] = time.monotonic) -> None:
        match = re.fullmatch(r"([1-9]\d*) steps?|(\d+(?:\.\d+)?) minutes?", text.strip())
        if match is None and text.strip():
            raise ValueError(text)
        steps, minutes = match.groups() if match else (None, None)
        self.steps = int(steps or 0)
        self.seconds = 60 * float(minutes or 0)
        if match and not (self.steps or self.seconds):
            raise ValueError(text)
        self._clock = clock
        self._last = clock()

    def due(self, step: int) -> bool:
        """Return whether to save after `step`, counted from 1 over all epochs.

        All processes save when the clock of any of them says so.
        """
        if self.steps:
            return step % self.steps == 0
        return self.seconds > 0 and distributed.all_reduce_max(self._clock() - self._last >= self.seconds) > 0

    def reset(self) -> None:
        """Restart the clock, after a save."""
        self._last = self._clock()
