"""Makes the report on some runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Optional, Sequence

from .. import __version__
from ..errors import check_libraries
from ..paths import user_path
from .material import Material
from .observe import observe
from .page import LIBRARIES, render, target_page, write_page
from .runs import Run, read_runs
from .sections import all_sections
from .teachers import find_teachers

log = logging.getLogger("mdistiller")


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    reference: Optional[str] = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    own_code: Sequence[str] = (),
) -> Path:
    """Write a page about runs, and return its path.

    Every student, and every teacher that can be found, is evaluated once on the validation set.

    Args:
        paths: folders of the runs.
        output: the file.
        reference: the folder of the run that the others are compared with; by default the first.
        overwrite: whether to replace a file that is not an earlier report.
        overrides: `KEY VALUE …`, for another place of the data set, or for plug-ins.
        own_code: names of models of the user's own that the runs may name.

    Raises:
        UserError: a library is missing, a run or its data cannot be read, or the file cannot be written.
    """
    check_libraries("a report", LIBRARIES)
    target = target_page(output, overwrite)
    runs = read_runs([*paths, *([reference] if reference is not None else [])], overrides, own_code)
    number = 0 if reference is None else _number_of(reference, runs)
    teachers = find_teachers(runs, own_code)
    for why in dict.fromkeys(teacher.why_missing for teacher in teachers if teacher.label and teacher.why_missing):
        log.info("note: %s The sections that need a teacher say so.", why)
    material = Material(runs, teachers, observe(runs, teachers), number)
    names = [runs[place].label for place in material.in_focus]
    against = f" beside {runs[number].label}" if material.others else ""
    subtitle = f"{_joined(names)}{against}. Made by mdistiller {__version__} from the runs' files; works offline."
    title = f"Report on {_joined(names)}" if len(names) <= 3 else f"Report on {len(runs)} runs"
    write_page(target, render(title, subtitle, all_sections(material)))
    return target


def _number_of(reference: str, runs: Sequence[Run]) -> int:
    folder = user_path(reference).resolve()
    return next(number for number, run in enumerate(runs) if run.folder == folder)


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
