"""What a study would run, and how long it would take."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from ..engine.log.run_text import duration
from ..errors import UserError
from .elsewhere import finished_elsewhere
from .estimate import on_this_hardware, seconds_per_epoch, total_seconds
from .folder import StudyFolder, cells_to_run, finished_here
from .grid import Study
from .results import completed_epochs


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
