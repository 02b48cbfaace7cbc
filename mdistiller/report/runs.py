"""The runs of a report: what their folders hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Dict, List, Sequence

from ..engine.checkpoint import STUDENT_FILES
from ..engine.run.folder import RunFolder
from ..engine.run.records import Row, read_metrics, read_summary
from ..errors import UserError
from ..export.source import Source, read_source
from ..paths import user_path
from .blocks import plain

MAX_LABEL = 40  # characters


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        folder: the folder of the run.
        label: its name on the page.
        source: the student and its description.
        rows: the rows of metrics.jsonl, one per epoch.
        summary: the content of summary.json; empty if the run is not finished.
    """

    folder: Path
    label: str
    source: Source
    rows: List[Row]
    summary: Dict[str, Any]

    @property
    def config(self) -> Dict[str, Any]:
        """The configuration that the student's checkpoint holds."""
        return self.source.checkpoint["config"]

    @property
    def distiller(self) -> Dict[str, Any]:
        """The section `DISTILLER` of the configuration; empty if the checkpoint lacks it."""
        section = self.config.get("DISTILLER")
        return section if isinstance(section, dict) else {}

    @property
    def method(self) -> str:
        """The name of its distiller, `DISTILLER.TYPE`."""
        return str(self.distiller.get("TYPE", "unknown"))

    @property
    def method_in_words(self) -> str:
        return "alone (cross-entropy)" if self.method == "NONE" else plain(self.method)

    def series(self, key: str) -> Dict[int, float]:
        """Return the values of a key of metrics.jsonl by epoch."""
        return {row["epoch"]: float(row[key]) for row in self.rows if isinstance(row.get(key), (int, float))}


def read_runs(
    paths: Sequence[str | os.PathLike[str]], overrides: Sequence[str] = (), own_code: Sequence[str] = ()
) -> List[Run]:
    """Read the folders of runs.

    Args:
        paths: the folders; one that is given twice counts once.
        overrides: `KEY VALUE …`, for another place of the data set, or for plug-ins.
        own_code: names of models of the user's own that the runs may name.

    Raises:
        UserError: a folder is missing or holds no run with a student, or a file in it is damaged; or the runs have
            different classes.
    """
    folders = list(dict.fromkeys(_run_folder(path) for path in paths))
    runs = []
    for folder, label in zip(folders, _labels(folders)):
        files = RunFolder(str(folder.parent), folder.name)
        runs.append(
            Run(
                folder,
                label,
                read_source(folder, overrides, own_code=own_code),
                read_metrics(files.metrics),
                read_summary(files.summary) if files.summary.exists() else {},
            )
        )
    for run in runs[1:]:
        _check_same_data(runs[0], run)
    return runs


def _labels(folders: Sequence[Path]) -> List[str]:
    """Return a different label for each folder: the end of its path, as long as needed but at most MAX_LABEL."""
    labels = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        depth = next(n for n in count(1) if all(parts[-n:] != folder.parts[-n:] for parts in others))
        labels.append(plain("/".join(folder.parts[-depth:]), MAX_LABEL))
    if len(set(labels)) < len(labels):  # they differ beyond that length
        labels = [plain(f"{number}: {label}", MAX_LABEL) for number, label in enumerate(labels, start=1)]
    return labels


def _run_folder(path: str | os.PathLike[str]) -> Path:
    folder = user_path(path)
    if not folder.exists():
        raise UserError(f"there is no run folder {folder}; give the folder of a run, such as output/demo_sfakd")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder of its run, {folder.absolute().parent}")
    folder = folder.resolve()
    files = RunFolder(str(folder.parent), folder.name)
    if not files.metrics.is_file() and not files.config.is_file():
        raise UserError(
            f"{folder} is not the folder of a run: it holds neither {files.metrics.name} nor {files.config.name}; give"
            " the folder that training wrote, such as output/demo_sfakd"
        )
    if not any((folder / name).is_file() for name in STUDENT_FILES):
        raise UserError(
            f"the run {folder} has no checkpoint of a student yet ({' or '.join(STUDENT_FILES)}), because it has not"
            " been evaluated yet; continue it with --resume"
        )
    return folder


def _check_same_data(first: Run, other: Run) -> None:
    ours, theirs = (run.source.checkpoint for run in (first, other))
    if (ours["dataset"], ours["classes"]) == (theirs["dataset"], theirs["classes"]):
        return
    described = (f"{c['dataset']}, {len(c['classes'])} classes" for c in (ours, theirs))
    detail = " and ".join(described)
    raise UserError(
        f"the runs {first.folder} and {other.folder} are on different data ({detail}, or other names of"
        " classes); give runs on the same data set"
    )
