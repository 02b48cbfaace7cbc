"""Runs the cells of a study: starts them, follows them, and writes the results after each."""

from __future__ import annotations

import fnmatch
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

from tqdm import tqdm

from ..atomic_files import replace_text, writing_to
from ..distillers import distiller_dict
from ..engine.cfg import dump
from ..engine.log.run_text import duration
from ..engine.run.lock import check_free, locked
from ..engine.run.records import read_summary
from ..errors import UserError, did_you_mean, one_line, refuse
from .elsewhere import finished_elsewhere
from .estimate import on_this_hardware, seconds_per_epoch, total_seconds
from .grid import Cell, Study
from .job import Job
from .launchers import Handle, Launcher
from .outputs import write_results
from .results import Summary, changed_settings, check_summary, completed_epochs, finished, run_folder
from .validation_images import ValidationImages

POLL_SECONDS = 1.0  # between two looks at the runs
PATIENCE = 60.0  # seconds for a run of a killed study to save its state and end


class StudyFolder:
    """`output/studies/<name>/`: the runs, their logs and configurations, the shared teacher cache, and the results.

    Attributes:
        images: the validation images on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.logs = path / "logs"
        self.configs = path / "configs"
        self.images = ValidationImages()

    def weights(self, teacher: Cell, study: Study) -> Optional[Path]:
        """Return the weights of a trained teacher, of this study or of one that it shares; `None` without them.

        They are those of the last epoch; the best epoch was chosen by the validation images.
        """
        for runs in [self.runs, *(self.path.parent / name / "runs" for name in study.share)]:
            folder = run_folder(runs, teacher)
            if folder.summary.is_file() and folder.student_latest.is_file():
                summary = check_summary(read_summary(folder.summary), str(folder.summary))
                if not (
                    changed_settings(summary["settings"], teacher.cfg) or self.images.changes(teacher.cfg, summary)
                ):
                    return folder.student_latest
        return None

    def _teacher_cache(self, study: Study) -> Path:
        """Return the folder of the teachers' outputs: that of a shared study if it has one."""
        shared = [self.path.parent / name / "teacher_cache" for name in study.share]
        return next(filter(Path.is_dir, shared), self.path / "teacher_cache")

    def job(self, cell: Cell, study: Study) -> Job:
        """Write the configuration of a cell; return the job that starts it, or continues it."""
        cfg = cell.cfg.clone()
        cfg.LOG.PREFIX = str(self.runs)
        if cell.teacher:
            teacher = next(each for each in study.teachers if each.name == cell.teacher)
            weights = self.weights(teacher, study)
            assert weights is not None, "a student starts after its teacher"
            cfg.DISTILLER.TEACHER_WEIGHTS = str(weights)
        needs_teacher = distiller_dict[cfg.DISTILLER.TYPE].needs_teacher
        if study.teacher_cache and needs_teacher and cfg.TEACHER_CACHE == "off":
            cfg.TEACHER_CACHE = str(self._teacher_cache(study))
        path = self.configs / f"{cell.name}.yaml"
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, dump(cfg))
        return Job(
            cell.name,
            ("--cfg", str(path)),
            run_folder(self.runs, cell),
            self.logs / f"{cell.name}.txt",
            Path.cwd(),
            {"OMP_NUM_THREADS": str(study.threads)},
        )


def run_study(study: Study, output: Path, launcher: Launcher, only: Sequence[str] = ()) -> Dict[str, Summary]:
    """Run the unfinished cells of a study; return the summaries of all finished ones, by name.

    Args:
        output: the folder of the study.
        launcher: the launcher that starts the runs.
        only: the patterns of the names of cells to run; other cells are not run, except teachers of those that are.

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


def dry_run(study: Study, output: Path, jobs: int, only: Sequence[str] = ()) -> str:
    """Return a line for each run of a study, with its state, and an estimate of the time; nothing is written.

    Args:
        output: the folder of the study.
        jobs: the number of runs at the same time.
        only: see `run_study`.

    Raises:
        UserError: see `finished_here`.
    """
    folder = StudyFolder(output)
    here = finished_here(study, folder)
    elsewhere = finished_elsewhere(study, output, folder.images)
    summaries = {**elsewhere, **here}
    left = cells_to_run(study, folder, summaries, only)
    done = {cell.name: completed_epochs(folder.runs, cell) for cell in left}
    lines, times, unknown = [], {}, ""
    try:
        pace = seconds_per_epoch(study, left, {**on_this_hardware(elsewhere, study.threads), **here})
        times = {cell.name: pace[cell.row] * max(cell.cfg.SOLVER.EPOCHS - done[cell.name], 0) for cell in left}
    except UserError as error:
        unknown = error.faults[0]
    for cell in study.all_cells():
        state = "finished" if cell.name in summaries else "not in --only"
        if cell in left:
            time_left = f", about {duration(times[cell.name])} to go" if cell.name in times else ""
            state = f"epoch {done[cell.name]} of {cell.cfg.SOLVER.EPOCHS}{time_left}"
        lines.append(f"{cell.name:<50} {state}")
    text = f"{len(left)} of {len(study.all_cells())} runs to do"
    if unknown:
        return "\n".join([*lines, f"{text}; their time cannot be estimated ({unknown})"])
    one_by_one, together = total_seconds(left, times, jobs)
    text += f", about {duration(one_by_one)} one after the other, {duration(together)} with --jobs {jobs}"
    if study.teacher_cache and one_by_one:
        text += "; less where a teacher's outputs are cached"
    return "\n".join([*lines, text])


def finished_here(study: Study, folder: StudyFolder) -> Dict[str, Summary]:
    """Return the summaries of the runs that are finished in a study's folder, by name.

    Raises:
        UserError: one line for each run with other settings, or for each that was evaluated on other images.
    """
    here = finished(folder.runs, study.all_cells())
    changed = {
        cell.name: folder.images.changes(cell.cfg, here[cell.name]) for cell in study.all_cells() if cell.name in here
    }
    refuse(
        f"{folder.runs / name} was run on other data ({'; '.join(changes)}); give another --output, or remove that"
        " folder"
        for name, changes in changed.items()
        if changes
    )
    return here


def cells_to_run(
    study: Study, folder: StudyFolder, summaries: Dict[str, Summary], only: Sequence[str] = ()
) -> List[Cell]:
    """Return the unfinished cells, after the teachers that they need and whose weights are not here.

    Args:
        summaries: the summaries of the finished cells, by name.
        only: see `run_study`.

    Raises:
        UserError: a pattern fits no cell.
    """
    names = [cell.name for cell in study.cells]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"--only is {pattern!r}, which fits no run of the study{did_you_mean(pattern, names)}")
    wanted = {name for pattern in only or ("*",) for name in fnmatch.filter(names, pattern)} - set(summaries)
    cells = [cell for cell in study.cells if cell.name in wanted]
    used = {cell.teacher for cell in cells}
    return [cell for cell in study.teachers if cell.name in used and not folder.weights(cell, study)] + cells


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
