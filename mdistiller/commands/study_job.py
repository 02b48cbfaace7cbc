"""Train one run of a study, which `mdistiller-study` starts: `mdistiller-train` that stops when its study ends."""

from __future__ import annotations

import os
import signal
import threading

from .train import command


def stop_at_end_of_input() -> None:
    """Send SIGTERM to this process when its standard input ends, so that it saves its state and stops."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    stop_at_end_of_input()
    command()
