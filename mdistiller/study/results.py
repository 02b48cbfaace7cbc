"""Results of a study's runs: which are finished in the study's folder."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

from yacs.config import CfgNode

from ..atomic_files import replace_text
from ..engine.cfg import FROM_DATA, own_leaves, setting_changes, settings_of
from ..engine.cfg.yaml_files import read_file
from ..engine.run.folder import RunFolder
from ..engine.run.records import read_metrics, read_summary
from ..errors import UserError, listed, refuse
from .grid import Cell

Summary = Dict[str, Any]  # the content of a run's summary.json
# The keys that the tables use. A value with keys of its own, also with none that is needed, is a dictionary.
NEEDED: Dict[str, Optional[Sequence[str]]] = {
    **dict.fromkeys(("name", "epochs", "seconds", "images_per_second")),
    **dict.fromkeys(("num_classes", "train_images", "val_images", "teacher")),
    **dict.fromkeys(("precision", "hardware")),
    **dict.fromkeys(("settings", "origin", "teacher_accuracy"), ()),
    "last": ("deployed_top1", "deployed_top5"),
    "best": ("deployed_top1", "epoch"),
    "deployed": ("parameters", "macs"),
    "versions": ("torch",),
}


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
            summary = check_summary(read_summary(folder.summary), str(folder.summary))
            settings = summary["settings"]
            found[cell.name] = {**summary, "epoch_seconds": _epoch_seconds(folder.metrics)}
        elif folder.config.is_file() and folder.latest.is_file():
            settings = own_leaves(read_file(folder.config), cell.cfg.DISTILLER.TYPE)
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
    seconds = [row["seconds"] for row in read_metrics(metrics) if "seconds" in row]
    return round(statistics.median(seconds), 2) if seconds else None


def save_summaries(path: Path, cells: Sequence[Cell], summaries: Dict[str, Summary]) -> None:
    """Write the summaries, a line each, in the order of the cells."""
    lines = [json.dumps(summaries[cell.name], sort_keys=True) for cell in cells if cell.name in summaries]
    replace_text(path, "".join(f"{line}\n" for line in lines))


def completed_epochs(runs: Path, cell: Cell) -> int:
    """Return how many epochs an unfinished run has completed."""
    metrics = run_folder(runs, cell).metrics
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def check_summary(summary: Any, source: str) -> Summary:
    """Return the content of a run's summary.json if it has what the tables need.

    Raises:
        UserError: it is something else; `source` names the place.
    """
    if not isinstance(summary, dict):
        raise UserError(f"{source} is not the summary of a run, but a {type(summary).__name__}; remove it")
    missing = []
    for key, parts in NEEDED.items():
        if key not in summary or (parts is not None and not isinstance(summary[key], dict)):
            missing.append(key)
        elif parts is not None:
            missing += [f"{key}.{part}" for part in parts if part not in summary[key]]
    if missing:
        raise UserError(
            f"{source} is not the summary of a run of this version: it has no {listed(missing, 3)}; give another"
            " --output, or remove it"
        )
    return summary


def changed_settings(before: Dict[str, Any], cfg: CfgNode) -> List[str]:
    """Return a phrase for each setting in which a run differs from `cfg`, except those that its data determine."""
    undetermined = {f"DATASET.{name}" for name in FROM_DATA if cfg.DATASET[name] is None}
    now = {key: value for key, value in settings_of(cfg).items() if key not in undetermined}
    return setting_changes(before, now)
