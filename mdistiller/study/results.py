"""Results of a study's runs: which are finished in the study's folder."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

from yacs.config import CfgNode

from ..atomic_files import replace_text
from ..engine.cfg import FROM_DATA, leaves, setting_changes, settings_of
from ..engine.cfg.yaml_files import read_file
from ..engine.run.folder import RunFolder
from ..errors import UserError, refuse
from ..paths import read_text
from .grid import Cell

Summary = Dict[str, Any]  # the content of a run's summary.json
NEEDED = ("name", "last", "best", "epochs", "seconds", "settings", "origin", "deployed", "precision", "hardware")


def run_folder(runs: Path, cell: Cell) -> RunFolder:
    """Return the folder of a cell below `runs`."""
    return RunFolder(str(runs), cell.name)


def finished(runs: Path, cells: Iterable[Cell]) -> Dict[str, Summary]:
    """Return the summaries of the cells that are finished in the folder `runs`, by name.

    `epoch_seconds`, the median time of an epoch without its evaluation, is added to them.

    Raises:
        UserError: one line for each cell whose run, finished or not, has other settings.
    """
    found, errors = {}, []
    for cell in cells:
        folder = run_folder(runs, cell)
        settings: Dict[str, Any] = {}
        if folder.summary.is_file():
            summary = parse(read_text(folder.summary), str(folder.summary))
            settings = summary["settings"]
            found[cell.name] = {**summary, "epoch_seconds": _epoch_seconds(folder.metrics)}
        elif folder.config.is_file() and folder.latest.is_file():
            settings = dict(leaves(read_file(folder.config)))
        changes = changed_settings(settings, cell.cfg) if settings else []
        if changes:
            errors.append(
                f"{folder.path} was run with other settings ({'; '.join(changes[:3])}); give another --output, or"
                " remove that folder"
            )
    refuse(errors)
    return found


def _epoch_seconds(metrics: Path) -> Optional[float]:
    if not metrics.is_file():
        return None
    rows = [json.loads(line) for line in read_text(metrics).splitlines()]
    return round(statistics.median(row["seconds"] for row in rows), 2)


def save_summaries(path: Path, cells: Sequence[Cell], summaries: Dict[str, Summary]) -> None:
    """Write the summaries, a line each, in the order of the cells."""
    lines = [json.dumps(summaries[cell.name], sort_keys=True) for cell in cells if cell.name in summaries]
    replace_text(path, "".join(f"{line}\n" for line in lines))


def completed_epochs(runs: Path, cell: Cell) -> int:
    """Return how many epochs an unfinished run has completed."""
    metrics = run_folder(runs, cell).metrics
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def parse(text: str, source: str) -> Summary:
    """Return the content of a run's summary.json.

    Raises:
        UserError: it is something else; `source` names the place.
    """
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


def changed_settings(before: Dict[str, Any], cfg: CfgNode) -> List[str]:
    """Return a phrase for each setting in which a run differs from `cfg`, except those that its data determine."""
    undetermined = {f"DATASET.{name}" for name in FROM_DATA if cfg.DATASET[name] is None}
    now = {key: value for key, value in settings_of(cfg).items() if key not in undetermined}
    return setting_changes(before, now)
