"""Results of runs outside a study's folder: of other studies, and from other machines."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Dict, List, Tuple

from ..errors import UserError
from ..paths import read_text
from .grid import Study
from .results import Summary, changed_settings, check_summary
from .validation_images import ValidationImages

log = logging.getLogger("mdistiller")
SUMMARIES = "summaries.jsonl"  # of a study's folder


def finished_elsewhere(study: Study, output: Path, images: ValidationImages) -> Dict[str, Summary]:
    """Return the summaries that belong to the study's cells, by name.

    They come from the files in `SUMMARIES` and from the studies in `SHARE`.

    A result is used if its settings are the study's, its validation images are those on this machine, and the same
    file has the result of its teacher. Otherwise it is left out, with a note. Where the images are not here they are
    not compared, and a note says so. The first file that has a result counts.

    Args:
        output: folder of the study.
        images: the validation images on this machine.

    Raises:
        UserError: a file is damaged.
    """
    found: Dict[str, Summary] = {}
    for path in [*study.summaries, *(output.parent / name / SUMMARIES for name in study.share)]:
        if path.is_file():
            found = {**_usable(path, study, images), **found}
        else:
            log.info(f"note: {path} does not exist; it has no results to use")
    return {cell.name: found[cell.name] for cell in study.all_cells() if cell.name in found}


def _usable(path: Path, study: Study, images: ValidationImages) -> Dict[str, Summary]:
    """Return the summaries of a file that can be used, by name of the cell."""
    summaries = _read(path)
    found: Dict[str, Summary] = {}
    refused: List[Tuple[str, str]] = []
    for cell in study.all_cells():  # teachers come first
        if cell.name in summaries:
            summary = summaries[cell.name]
            changes = changed_settings(summary["settings"], cell.cfg) or images.changes(cell.cfg, summary)
            if not changes and cell.teacher and cell.teacher not in found:
                changes = [f"its teacher {cell.teacher} is not in the file, or under other conditions"]
            if changes:
                refused.append((cell.name, changes[0]))
            else:
                found[cell.name] = summary
    if refused:
        name, change = refused[0]
        others = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        log.info(f"note: {path} has {name} under other conditions ({change}){others}; not used")
    reasons = [images.missing(cell.cfg) for cell in study.all_cells() if cell.name in found]
    for reason in dict.fromkeys(filter(None, reasons)):
        log.info(f"note: results of {path} are used, but their validation images could not be compared ({reason})")
    return found


def _read(path: Path) -> Dict[str, Summary]:
    """Return the summaries of a file by name; the last of a name counts."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); get it again") from None
    summaries = {}
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, is not JSON ({error}); get the file again") from None
        summary = check_summary(content, f"{path}, line {number},")
        summaries[summary["name"]] = summary
    return summaries
