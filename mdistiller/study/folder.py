"""The folder of a study: its runs, what is finished there, and what is left to do."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from ..atomic_files import replace_text, writing_to
from ..distillers import distiller_dict
from ..engine.cfg import dump
from ..engine.run.records import read_summary
from ..errors import UserError, did_you_mean, refuse
from .grid import Cell, Study
from .job import Job
from .results import Summary, changed_settings, check_summary, finished, run_folder
from .validation_images import ValidationImages


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
