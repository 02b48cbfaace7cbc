"""Results of a study's runs: which are finished, in the study's folder or in a file from another machine."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence

from yacs.config import CfgNode

from ..atomic_files import replace_text
from ..engine.cfg import FROM_DATA, setting_changes, settings_of
from ..engine.run.folder import RunFolder
from ..errors import UserError, refuse
from ..paths import read_text
from .grid import Cell, Study

log = logging.getLogger("mdistiller")

Summary = Dict[str, Any]  # the content of a run's summary.json
NEEDED = ("name", "last", "best", "epochs", "seconds", "settings", "origin", "deployed", "precision", "hardware")


def run_folder(runs: Path, cell: Cell) -> RunFolder:
    """Return the folder of a cell below `runs`."""
    return RunFolder(str(runs), cell.name)


def finished(runs: Path, cells: Iterable[Cell]) -> Dict[str, Summary]:
    """Return the summaries of the cells that are finished in the folder `runs`, by name.

    Raises:
        UserError: one line for each cell whose run has other settings.
    """
    found, errors = {}, []
    for cell in cells:
        folder = run_folder(runs, cell)
        if folder.summary.is_file():
            summary = _parse(read_text(folder.summary), str(folder.summary))
            changes = _changes(summary, cell.cfg)
            if changes:
                errors.append(
                    f"{folder.path} was run with other settings ({'; '.join(changes[:3])}); give another --output, or"
                    " remove that folder"
                )
            found[cell.name] = summary
    refuse(errors)
    return found


def finished_elsewhere(study: Study) -> Dict[str, Summary]:
    """Return the summaries in the study's `SUMMARIES` files that belong to its cells, by name.

    Runs with other settings are left out, with a note. A file that does not exist yet counts as empty.

    Raises:
        UserError: a file is damaged.
    """
    found: Dict[str, Summary] = {}
    for path in filter(Path.is_file, study.summaries):
        found.update(_finished_in(path, study))
    return found


def _finished_in(path: Path, study: Study) -> Dict[str, Summary]:
    cells = {cell.name: cell for cell in study.all_cells()}
    found, outdated = {}, {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        summary = _parse(line, f"{path}, line {number},")
        cell = cells.get(summary["name"])
        if cell is not None:
            changes = _changes(summary, cell.cfg)
            if changes:
                outdated[cell.name] = changes[0]
            else:
                found[cell.name] = summary
    if outdated:
        name, change = next(iter(outdated.items()))
        others = f", and {len(outdated) - 1} more" if len(outdated) > 1 else ""
        log.info(f"note: {path} has {name} with other settings ({change}){others}; not used")
    return found


def save_summaries(path: Path, cells: Sequence[Cell], summaries: Dict[str, Summary]) -> None:
    """Write the summaries, a line each, in the order of the cells."""
    lines = [json.dumps(summaries[cell.name], sort_keys=True) for cell in cells if cell.name in summaries]
    replace_text(path, "".join(f"{line}\n" for line in lines))


def completed_epochs(runs: Path, cell: Cell) -> int:
    """Return how many epochs an unfinished run has completed."""
    metrics = run_folder(runs, cell).metrics
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def _parse(text: str, source: str) -> Summary:
    try:
        summary = json.loads(text)
        missing = [key for key in NEEDED if key not in summary]
    except (ValueError, TypeError) as error:
        raise UserError(f"{source} is not the summary of a run ({error}); remove it") from None
    if missing:
        raise UserError(
            f"{source} has no {', '.join(missing)}; an earlier version wrote it: give another --output, or remove it"
        )
    return dict(summary)


def _changes(summary: Summary, cfg: CfgNode) -> List[str]:
    undetermined = {f"DATASET.{name}" for name in FROM_DATA if cfg.DATASET[name] is None}
    now = {key: value for key, value in settings_of(cfg).items() if key not in undetermined}
    return setting_changes(summary["settings"], now)
