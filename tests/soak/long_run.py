"""A long run of a tiny model must need no more memory and no more open files at its end than at its beginning.

`python3 tests/soak/long_run.py` trains resnet8 on the demo's images, distilled with SFAKD, for half an hour, saves
every 20 steps, and looks at the process after each epoch. Linux.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, List, Tuple

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from mdistiller.engine.build import build_trainer  # noqa: E402
from mdistiller.engine.cfg import load_cfg  # noqa: E402

GROWTH = 0.02  # of the resident memory from the second fifth of the run to the last; epochs differ by less


def look() -> Tuple[float, int]:
    """Return the resident memory of this process, MiB, and its number of open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def verdict(samples: List[Tuple[float, int]]) -> Tuple[bool, str]:
    """Return whether neither number grew, and a line with both; the first fifth is warm-up."""
    fifth = max(len(samples) // 5, 1)
    early, late = samples[fifth : 2 * fifth] or samples[:1], samples[-fifth:]
    memory = [statistics.median(sample[0] for sample in part) for part in (early, late)]
    files = [max(sample[1] for sample in part) for part in (early, late)]
    flat = memory[1] <= memory[0] * (1 + GROWTH) and files[1] <= files[0]
    return flat, (
        f"{len(samples)} epochs: resident memory {memory[0]:.1f} MiB in the second fifth, {memory[1]:.1f} MiB in the"
        f" last ({100 * (memory[1] / memory[0] - 1):+.2f} %), open files {files[0]} and {files[1]}:"
        f" {'flat' if flat else 'GROWING'}"
    )


class Enough(Exception):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--folder", default="output/soak_long", help="replaced")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    smaller = "DATASET.TRAIN_FRACTION 0.1 SOLVER.EPOCHS 1000000 SOLVER.SCHEDULE step LOG.TENSORBOARD_FREQ 5"
    own = ["LOG.PREFIX", args.folder, "EXPERIMENT.NAME", "run", "SOLVER.CHECKPOINT_EVERY", "20 steps"]
    trainer = build_trainer(load_cfg(str(REPO / "configs/demo/sfakd.yaml"), [*smaller.split(), *own]))
    save, samples, end = trainer.save, [], time.monotonic() + 60 * args.minutes
    shown = 0.0

    def looking(*given: Any) -> None:
        nonlocal shown
        save(*given)
        samples.append(look())
        if time.monotonic() - shown > 60:
            shown = time.monotonic()
            memory, files = samples[-1]
            print(f"{len(samples)} epochs, {memory:.1f} MiB, {files} files", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            raise Enough

    trainer.save = looking  # type: ignore[method-assign]
    with suppress(Enough), open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        trainer.train()
    flat, line = verdict(samples)
    print(line)
    sys.exit(not flat)


if __name__ == "__main__":
    main()
