"""Step time with a filled teacher cache of 2, 5 and 10 fixed views, against fresh forms in each epoch.

`python3 tests/soak/step_time_of_views.py --cfg FILE KEY VALUE …` takes the arguments of tools/train.py. All trainers
are in one process and take turns, so that a machine whose speed drifts slows all of them. Each turn is `STEPS` steps of
the first epoch, its data included; the caches have seen this epoch. Beside the wall-clock time stands the processor's
time, which other processes of a busy machine affect less; set `DATASET.NUM_WORKERS 0` so that it includes the data.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mdistiller.engine.build import build_trainer
from mdistiller.engine.validate import load_valid_cfg

VIEWS = (0, 2, 5, 10)
STEPS = 16


def endless(trainer: Any) -> Iterator[Any]:
    while True:
        yield from trainer.batches()


def prepared(path: str, views: int, overrides: List[str]) -> Tuple[Any, Iterator[Any]]:
    """Return a trainer and its batches; its cache, if any, contains the first epoch."""
    own = ["EXPERIMENT.NAME", f"views{views}", "DATASET.VIEWS", str(views)]
    trainer = build_trainer(load_valid_cfg(path, [*overrides, *own, "TEACHER_CACHE", "memory" if views else "off"]))
    trainer.prepare()
    trainer.distiller.train()
    trainer.train_loader.set_epoch(1)
    if views:
        for _ in trainer.batches():
            pass
    return trainer, endless(trainer)


def turn(trainer: Any, batches: Iterator[Any]) -> Tuple[float, float]:
    """Take `STEPS` steps; return seconds by the clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    with trainer.step.networks.in_place():
        for step in range(STEPS):
            trainer.train_step(next(batches), 1, step, len(trainer.train_loader))
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    args, overrides = parser.parse_known_args()
    runs = [prepared(args.cfg, views, overrides) for views in VIEWS]
    for run in runs:
        turn(*run)
    rounds = []
    for number in range(args.rounds):
        order = [(k + number) % len(runs) for k in range(len(runs))]
        times = {k: turn(*runs[k]) for k in order}
        rounds.append([times[k] for k in range(len(runs))])
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    print("| views | ms a step | time / fresh | processor's time / fresh |\n| --- | --- | --- | --- |")
    for k, views in enumerate(VIEWS):
        cells = [f"{1000 * statistics.median(times[k][0] for times in rounds) / STEPS:.0f}"]
        for clock in (0, 1):
            low, middle, high = statistics.quantiles([times[k][clock] / times[0][clock] for times in rounds], n=4)
            cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
        print(f"| {views or 'fresh'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
