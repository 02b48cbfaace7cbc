"""torchrun, except that it forks its processes after it has imported everything: `launch.py COUNT RESTARTS SCRIPT …`.

A process that torchrun starts spends most of a short test on its imports.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import traceback

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import mdistiller.commands.train  # noqa: F401
import tests.engine.test_trainer  # noqa: F401


def run_script(*arguments: str) -> None:
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)  # not those of the launcher that this is a fork of
    sys.argv = list(arguments)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except Exception:
        print(f"[rank{os.environ['RANK']}]: {traceback.format_exc()}", file=sys.stderr)  # as PyTorch prints it
        raise SystemExit(1) from None


def main() -> None:
    count, restarts, *arguments = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(count),
        max_restarts=int(restarts),
        start_method="fork",
        run_id="none",  # as torchrun has it where no --rdzv-id is given
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
    )
    elastic_launch(config, run_script)(*arguments)


if __name__ == "__main__":
    main()
