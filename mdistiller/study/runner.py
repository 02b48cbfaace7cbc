"""Runs the cells of a study: starts them, follows them, and writes the results after each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Dict

from tqdm import tqdm

from ..atomic_files import replace_text, writing_to
from ..engine.cfg import dump
from ..engine.log.run_text import duration
from ..engine.run.lock import check_free, locked
from ..errors import UserError, refuse
from .estimate import estimate, total_seconds
from .grid import Cell, Study
from .job import Job
from .launchers import Handle, Launcher
from .outputs import write_results
from .results import Summary, completed_epochs, finished, finished_elsewhere, run_folder

POLL_SECONDS = 1.0  # between two looks at the runs
PATIENCE = 60.0  # seconds for a run of a killed study to save its state and end


class StudyFolder:
    """`output/studies/<name>/`: the runs, their logs and configurations, the shared teacher cache, and the results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.logs = path / "logs"
        self.configs = path / "configs"
        self.teacher_cache = path / "teacher_cache"

    def job(self, cell: Cell, study: Study) -> Job:
        """Write the configuration of a cell; return the job that starts it, or continues it."""
        cfg = cell.cfg.clone()
        cfg.LOG.PREFIX = str(self.runs)
        if cell.teacher:
            teacher = next(each for each in study.teachers if each.name == cell.teacher)
            # the last epoch's weights; the best epoch was chosen by the validation images
            cfg.DISTILLER.TEACHER_WEIGHTS = str(run_folder(self.runs, teacher).student_latest)
        if study.teacher_cache and cfg.TEACHER_CACHE == "off":
            cfg.TEACHER_CACHE = str(self.teacher_cache)
        path = self.configs / f"{cell.name}.yaml"
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, dump(cfg))
        resume = ("--resume",) if run_folder(self.runs, cell).path.exists() else ()
        environment = {"OMP_NUM_THREADS": str(study.threads)}
        return Job(cell.name, ("--cfg", str(path), *resume), self.logs / f"{cell.name}.txt", Path.cwd(), environment)


def run_study(study: Study, output: Path, launcher: Launcher) -> Dict[str, Summary]:
    """Run the unfinished cells of a study; return the summaries of all finished ones, by name.

    Args:
        output: folder of the study.
        launcher: starts the runs.

    Raises:
        UserError: the folder is in use or holds runs with other settings; or, after all runs have ended, one line for
            each run that failed.
    """
    folder = StudyFolder(output)
    with locked(output, remedy="wait for it, or give another --output"):
        summaries = {**finished_elsewhere(study), **finished(folder.runs, study.all_cells())}
        write_results(study, summaries, {}, output)
        runner = _Runner(study, folder, launcher, summaries)
        try:
            runner.run()
        finally:
            launcher.stop()
            write_results(study, summaries, runner.failed, output)
    refuse(f"{name}: {reason}" for name, reason in runner.failed.items())
    return summaries


def dry_run(study: Study, output: Path, jobs: int) -> str:
    """Return a line for each run of a study, with its state, and an estimate of the time; nothing is written.

    Raises:
        UserError: see `results.finished` and `estimate.estimate`.
    """
    folder = StudyFolder(output)
    summaries = {**finished_elsewhere(study), **finished(folder.runs, study.all_cells())}
    left = [cell for cell in study.all_cells() if cell.name not in summaries]
    seconds = estimate(study, left, summaries)
    lines = []
    for cell in study.all_cells():
        epochs, length = completed_epochs(folder.runs, cell), cell.cfg.SOLVER.EPOCHS
        state = f"epoch {epochs} of {length}, about {duration(seconds[cell.name])}" if cell in left else "finished"
        lines.append(f"{cell.name:<50} {state}")
    one_by_one, together = total_seconds(seconds, jobs)
    lines.append(
        f"{len(left)} of {len(study.all_cells())} runs to do, about {duration(one_by_one)} one after the other,"
        f" {duration(together)} with --jobs {jobs}"
    )
    return "\n".join(lines)


class _Runner:
    def __init__(self, study: Study, folder: StudyFolder, launcher: Launcher, summaries: Dict[str, Summary]) -> None:
        self.study = study
        self.folder = folder
        self.launcher = launcher
        self.summaries = summaries
        self.failed: Dict[str, str] = {}  # reason by name
        self.running: Dict[str, Handle] = {}
        used = {cell.teacher for cell in study.cells if cell.name not in summaries}
        teachers = [cell for cell in study.teachers if cell.name in used and not self._has_weights(cell)]
        self.pending = teachers + [cell for cell in study.cells if cell.name not in summaries]
        self.cells = {cell.name: cell for cell in self.pending}
        self.trained = {"", *used} - {cell.name for cell in teachers}  # teachers that are ready

    def _has_weights(self, teacher: Cell) -> bool:
        """Whether a teacher was trained here; its summary may come from another machine, without its weights."""
        folder = run_folder(self.folder.runs, teacher)
        return folder.summary.is_file() and folder.student_latest.is_file()

    def run(self) -> None:
        total = sum(cell.cfg.SOLVER.EPOCHS for cell in self.pending)
        done = len(self.summaries)
        print(f"{len(self.study.all_cells())} runs, {done} finished, {len(self.pending)} to do, in {self.folder.path}")
        with tqdm(total=total, unit="epoch", file=sys.stderr, disable=None) as bar:
            bar.update(self._epochs())
            bar.unpause()
            while self.pending or self.running:
                self._start()
                time.sleep(POLL_SECONDS)
                self._collect(bar)
                bar.set_postfix_str(f"{len(self.running)} running, {len(self.pending)} waiting", refresh=False)
                bar.update(self._epochs() - bar.n)

    def _epochs(self) -> int:
        """Return the epochs that the runs to do have completed; those of a failed run count as done."""
        lost = (*self.failed, *self.summaries)
        return sum(
            cell.cfg.SOLVER.EPOCHS if name in lost else completed_epochs(self.folder.runs, cell)
            for name, cell in self.cells.items()
        )

    def _start(self) -> None:
        for cell in list(self.pending):
            if cell.teacher in self.failed:
                self.pending.remove(cell)
                self._fail(cell.name, f"its teacher {cell.teacher} failed")
            elif cell.teacher in self.trained and len(self.running) < self.launcher.limit:
                self.pending.remove(cell)
                _wait_until_free(run_folder(self.folder.runs, cell).path)
                self.running[cell.name] = self.launcher.submit(self.folder.job(cell, self.study))

    def _collect(self, bar: tqdm) -> None:
        for name in [name for name, handle in self.running.items() if handle.done()]:
            reason = self.running.pop(name).result()
            cell = self.cells[name]
            if not reason:
                self.summaries.update(finished(self.folder.runs, [cell]))
                reason = "" if name in self.summaries else "it ended without a summary.json"
            if reason:
                self._fail(name, reason)
                continue
            self.trained.add(name)
            last, seconds = self.summaries[name]["last"]["deployed_top1"], self.summaries[name]["seconds"]
            bar.write(f"{name}: last top-1 {last:.2f}, {seconds:.0f} s", file=sys.stdout)
            write_results(self.study, self.summaries, self.failed, self.folder.path)

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        tqdm.write(f"failed: {name}: {reason}", file=sys.stdout)


def _wait_until_free(folder: Path) -> None:
    """Wait until the run of a killed study has ended.

    Raises:
        UserError: it still runs after `PATIENCE` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            check_free(folder)
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
