"""Results that other studies, or other machines, have for the runs of a study: which of them may be used."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

from ..dataset import get_val_loader
from ..engine.cfg import to_dict
from ..engine.run.origin import origin_of_val, short_origin
from ..errors import UserError
from ..paths import read_text
from .grid import Cell, Study
from .results import Summary, changed_settings, parse

log = logging.getLogger("mdistiller")
SUMMARIES = "summaries.jsonl"  # of a study's folder
TRAIN_ONLY = (  # keys of DATASET that change no validation image
    *("TRAIN_FRACTION", "FRACTION_SEED", "FLIP", "PADDING", "ROTATION", "POLICY", "POLICY_OPS", "POLICY_MAGNITUDE"),
    *("ERASING", "MIXUP", "CUTMIX", "VIEWS", "VIEWS_SEED", "UNLABELED", "UNLABELED_RATIO"),
)


def finished_elsewhere(study: Study, output: Path, finished_here: Iterable[str]) -> Dict[str, Summary]:
    """Return the summaries that belong to the study's cells, by name, from its `SUMMARIES` and from those it shares.

    A result is used if its settings are the study's, its validation images are those on this machine, and its teacher
    is one of the study. Otherwise it is left out, with a note. Where the images are not here they are not compared,
    and a note says so.

    Args:
        output: folder of the study.
        finished_here: names of the cells that are finished in that folder.

    Raises:
        UserError: a file is damaged.
    """
    found: Dict[str, Summary] = {}
    images = _Images()
    for path in [*study.summaries, *(output.parent / name / SUMMARIES for name in study.share)]:
        if path.is_file():
            found.update(_usable(path, study, images))
        else:
            log.info(f"note: {path} does not exist; it has no results to use")
    taught = {*found, *finished_here, ""}
    return {cell.name: found[cell.name] for cell in study.all_cells() if cell.name in found and cell.teacher in taught}


def _usable(path: Path, study: Study, images: _Images) -> Dict[str, Summary]:
    cells = {cell.name: cell for cell in study.all_cells()}
    found: Dict[str, Summary] = {}
    refused: List[Tuple[str, str]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        summary = parse(line, f"{path}, line {number},")
        cell = cells.get(summary["name"])
        if cell is not None:
            changes = changed_settings(summary["settings"], cell.cfg) or images.changes(cell, summary)
            if changes:
                refused.append((cell.name, changes[0]))
            else:
                found[cell.name] = summary
    if refused:
        name, change = refused[0]
        others = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        log.info(f"note: {path} has {name} under other conditions ({change}){others}; not used")
    if found and images.missing:
        log.info(f"note: results of {path} are used without a look at the data ({images.missing})")
    return found


class _Images:
    """Compares the validation images of results with those on this machine.

    Images are read once for all runs that validate on the same ones.

    Attributes:
        missing: the reason why images cannot be read here; empty if they can.
    """

    def __init__(self) -> None:
        self.missing = ""
        self._known: Dict[str, Dict[str, str]] = {}  # by settings of the data

    def changes(self, cell: Cell, summary: Summary) -> List[str]:
        """Return in what the validation images of a result differ from those of its cell."""
        cfg = cell.cfg
        seed = cfg.EXPERIMENT.SEED if cfg.DATASET.VAL_FRACTION else None  # chooses the validation images
        data = {name: value for name, value in to_dict(cfg.DATASET).items() if name not in TRAIN_ONLY}
        key = json.dumps([data, seed], sort_keys=True)
        if key not in self._known:
            try:
                self._known[key] = short_origin(origin_of_val(get_val_loader(cfg, "cpu")))
            except UserError as error:
                self._known[key], self.missing = {}, error.faults[0]
        now, before = self._known[key], summary["origin"]
        return [
            f"the {what} of the validation images were {before[name]}, now {now[name]}"
            for name, what in (("val_labels", "labels"), ("val_content", "pixels"))
            if name in before and name in now and _kind(before[name]) == _kind(now[name]) and before[name] != now[name]
        ]


def _kind(digest: str) -> str:
    """Return what a digest was computed from; images in memory and streamed images differ in this."""
    return digest.rpartition(": ")[0]
