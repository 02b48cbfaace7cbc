"""Runs the cells of a study: starts them, follows them, and writes the results after each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Dict, Sequence, Set

from tqdm import tqdm

from ..engine.run.lock import check_free, locked
from ..errors import UserError, one_line, refuse
from .elsewhere import finished_elsewhere
from .folder import StudyFolder, cells_to_run, finished_here
from .grid import Cell, Study
from .launchers import Handle, Launcher
from .outputs import write_results
from .results import Summary, completed_epochs, finished, run_folder

POLL_SECONDS = 1.0  # between two looks at the runs
PATIENCE = 60.0  # seconds for a run of a killed study to save its state and end


def run_study(study: Study, output: Path, launcher: Launcher, only: Sequence[str] = ()) -> Dict[str, Summary]:
    """Run the unfinished cells of a study; return the summaries of all finished ones, by name.

    Args:
        output: the folder of the study.
        launcher: the launcher that starts the runs.
        only: patterns of the names of cells to run. Other cells do not run, except teachers that these cells need.

    Raises:
        UserError: the folder is in use, or holds runs with other settings or on other data; or, after all runs have
            ended, one line for each run that failed.
    """
    folder = StudyFolder(output)
    with locked(output, remedy="wait for it, or give another --output"):
        here = finished_here(study, folder)
        summaries = {**finished_elsewhere(study, output, folder.images), **here}
        runner = _Runner(study, folder, launcher, summaries, only)
        write_results(study, summaries, {}, output)
        try:
            runner.run()
        finally:
            launcher.stop()
            write_results(study, summaries, runner.failed, output)
    refuse(f"{name}: {reason}" for name, reason in runner.failed.items())
    return summaries


class _Runner:
    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        launcher: Launcher,
        summaries: Dict[str, Summary],
        only: Sequence[str],
    ) -> None:
        self.study = study
        self.folder = folder
        self.launcher = launcher
        self.summaries = summaries
        self.failed: Dict[str, str] = {}  # reason by name
        self.ended: Set[str] = set()  # here; `summaries` may have a teacher that still has to be trained
        self.running: Dict[str, Handle] = {}
        self.pending = cells_to_run(study, folder, summaries, only)
        self.cells = {cell.name: cell for cell in self.pending}
        self.trained = {"", *(cell.name for cell in study.teachers)} - set(self.cells)  # teachers that are ready
        self.in_use: Dict[str, float] = {}  # since when a run of a killed study is seen to be running, by name

    def run(self) -> None:
        total = sum(cell.cfg.SOLVER.EPOCHS for cell in self.pending)
        done = len(self.summaries)
        print(f"{len(self.study.all_cells())} runs, {done} finished, {len(self.pending)} to do, in {self.folder.path}")
        with tqdm(total=total, initial=self._epochs(), unit="epoch", file=sys.stderr, disable=None) as bar:
            while self.pending or self.running:
                self._start()
                time.sleep(POLL_SECONDS)
                self._collect(bar)
                bar.set_postfix_str(f"{len(self.running)} running, {len(self.pending)} waiting", refresh=False)
                bar.update(self._epochs() - bar.n)

    def _epochs(self) -> int:
        """Return the epochs that the runs to do have completed; those of a failed run count as done."""
        over = {*self.failed, *self.ended}
        return sum(
            cell.cfg.SOLVER.EPOCHS if name in over else completed_epochs(self.folder.runs, cell)
            for name, cell in self.cells.items()
        )

    def _start(self) -> None:
        for cell in list(self.pending):
            if cell.teacher in self.failed:
                self.pending.remove(cell)
                self._fail(cell.name, f"its teacher {cell.teacher} failed")
            elif cell.teacher in self.trained and len(self.running) < self.launcher.limit and self._is_free(cell):
                self.pending.remove(cell)
                self.running[cell.name] = self.launcher.submit(self.folder.job(cell, self.study))

    def _is_free(self, cell: Cell) -> bool:
        """Whether nothing writes to a run's folder, as a run of a killed study does until it has saved its state.

        After `PATIENCE` seconds the run has failed.
        """
        try:
            check_free(run_folder(self.folder.runs, cell).path)
            return True
        except UserError as error:
            since = self.in_use.setdefault(cell.name, time.monotonic())
            if time.monotonic() - since > PATIENCE:
                self.pending.remove(cell)
                self._fail(cell.name, str(error))
            return False

    def _collect(self, bar: tqdm) -> None:
        for name in [name for name, handle in self.running.items() if handle.done()]:
            reason = self._result(self.running.pop(name), self.cells[name])
            self.ended.add(name)
            if reason:
                self._fail(name, reason)
                continue
            self.trained.add(name)
            last, seconds = self.summaries[name]["last"]["deployed_top1"], self.summaries[name]["seconds"]
            bar.write(f"{name}: last top-1 {last:.2f}, {seconds:.0f} s", file=sys.stdout)
            write_results(self.study, self.summaries, self.failed, self.folder.path)

    def _result(self, handle: Handle, cell: Cell) -> str:
        """Take the summary of a run that has ended; return what went wrong, or an empty string."""
        try:
            reason = handle.result()
            if not reason:
                self.summaries.update(finished(self.folder.runs, [cell]))
                reason = "" if cell.name in self.summaries else "it ended without a summary.json"
        except Exception as error:  # a cluster has many ways to lose a job
            reason = one_line(error)
        return str(reason)

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        tqdm.write(f"failed: {name}: {reason}", file=sys.stdout)
