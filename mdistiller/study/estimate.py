"""An estimate of the time that the unfinished runs of a study take."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

import torch

from ..benchmark.hardware import synchronize_device
from ..benchmark.synthetic import save_random_teacher
from ..distillers import distiller_dict
from ..engine.build import build_trainer
from ..engine.run.environment import describe_hardware
from ..engine.speed.precision import pick_device
from .grid import Cell, Row, Study
from .results import Summary

WARM_UP_STEPS = 1
TIMED_STEPS = 3


def seconds_per_epoch(study: Study, cells: Iterable[Cell], summaries: Dict[str, Summary]) -> Dict[Row, float]:
    """Return the estimated seconds of an epoch, with its share of the evaluations, of the rows of `cells`.

    For a row with finished runs, it is their median. In a row without one, a few steps and an evaluation batch are
    measured on this machine, with a teacher of random weights.

    Args:
        cells: the unfinished runs of the study.
        summaries: the summaries of finished runs in the study's folder, or on this kind of hardware, by name.

    Raises:
        UserError: data are missing, or the parts of a run do not fit each other.
    """
    known: Dict[Row, List[float]] = {}
    for cell in study.all_cells():
        if cell.name in summaries:
            summary = summaries[cell.name]
            known.setdefault(cell.row, []).append(summary["seconds"] / summary["epochs"])
    threads = torch.get_num_threads()
    torch.set_num_threads(study.threads)
    try:
        for cell in cells:
            if cell.row not in known:
                print(f"measuring {cell.name}", file=sys.stderr)
                known[cell.row] = [_measured(cell)]
    finally:
        torch.set_num_threads(threads)
    return {row: statistics.median(values) for row, values in known.items()}


def _measured(cell: Cell) -> float:
    cfg = cell.cfg.clone()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        cfg.LOG.PREFIX, cfg.EXPERIMENT.REFERENCE = folder, []
        if distiller_dict[cfg.DISTILLER.TYPE].needs_teacher and not cfg.DISTILLER.TEACHER_WEIGHTS:
            cfg.DISTILLER.TEACHER_WEIGHTS = save_random_teacher(cfg, Path(folder))
            cfg.DISTILLER.TEACHER_CLASSES = ""
        trainer = build_trainer(cfg)
        trainer.prepare()
        trainer.distiller.train()
        trainer.train_loader.set_epoch(1)
        num_steps = len(trainer.train_loader)
        count = min(num_steps, WARM_UP_STEPS + TIMED_STEPS)
        marks = []
        assert trainer.step.networks is not None
        with trainer.step.networks.in_place():
            for step, batch in enumerate(islice(trainer.batches(), count)):
                trainer.train_step(batch, 1, step, num_steps)
                synchronize_device(trainer.device)
                marks.append(time.perf_counter())
        step_seconds = (marks[-1] - marks[0]) / (len(marks) - 1) if len(marks) > 1 else 0.0
        trainer.distiller.eval()
        batch = next(iter(trainer.val_loader))
        started = time.perf_counter()
        with torch.inference_mode():
            trainer.distiller.forward_eval(batch["image"])
        synchronize_device(trainer.device)
        evaluation_seconds = len(trainer.val_loader) * (time.perf_counter() - started)
        evaluations = math.ceil(cfg.SOLVER.EPOCHS / cfg.SOLVER.EVAL_EVERY)
        return num_steps * step_seconds + evaluation_seconds * evaluations / cfg.SOLVER.EPOCHS


def on_this_hardware(summaries: Dict[str, Summary], threads: int) -> Dict[str, Summary]:
    """Return the summaries of runs on this machine's kind of hardware with `threads` CPU threads, by name."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        here = describe_hardware(pick_device())
    finally:
        torch.set_num_threads(before)
    return {name: summary for name, summary in summaries.items() if summary["hardware"] == here}


def total_seconds(cells: Sequence[Cell], seconds: Dict[str, float], jobs: int) -> Tuple[float, float]:
    """Return the sum of the durations of runs, and the time that they take with `jobs` runs at a time.

    Args:
        cells: the runs. A student starts after its teacher.
        seconds: the duration of each run, by name.
    """
    everything = sum(seconds.values())
    chains = [seconds[cell.name] + seconds.get(cell.teacher, 0.0) for cell in cells]
    return everything, max([everything / jobs, *chains])
