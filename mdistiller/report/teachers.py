"""The teachers of runs, where they can be found."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Sequence

from torch import nn

from ..dataset import DatasetInfo
from ..distillers import has_teacher
from ..engine.cfg import PRETRAINED, merge_known
from ..engine.networks.build import build_teacher
from ..errors import UserError
from ..models import library_of, may_build
from ..models.adapters.given_models import PREFIX
from ..paths import find_file
from .blocks import plain
from .runs import Run


@dataclass(frozen=True)
class Teacher:
    """A teacher.

    Attributes:
        label: its architecture; empty if there is none.
        key: a text that is equal for equal teachers that see equal images.
        model: the teacher, in evaluation mode; `None` if it is missing.
        why_missing: a sentence that says why the teacher is missing.
    """

    label: str
    key: str
    model: Optional[nn.Module]
    why_missing: str = ""


def find_teachers(runs: Sequence[Run], own_code: Sequence[str] = ()) -> List[Teacher]:
    """Return the teacher that each run is compared with.

    A run that was trained without one is compared with the first teacher of the other runs that can be built.

    Args:
        runs: the runs, whose configurations name the teachers.
        own_code: names of models of the user's own that may be imported.
    """
    built: Dict[str, Teacher] = {}

    def teacher_of(run: Run, options: Optional[Dict[str, Any]]) -> Teacher:
        info, view = run.source.info, run.source.view  # runs with the same teacher may crop their images differently
        key = json.dumps(
            [options, info.input_size, info.mean, info.std, view.size, view.margin], sort_keys=True, default=str
        )
        if key not in built:
            built[key] = _build(run, options, key, own_code)
        return built[key]

    specs = [_teacher_options(run) for run in runs]
    own = [None if options is None else teacher_of(run, options) for run, options in zip(runs, specs)]
    usable = [options for options, teacher in zip(specs, own) if teacher is not None and teacher.model is not None]
    shared = next(iter(usable), next(filter(None, specs), None))
    return [teacher or teacher_of(run, shared) for run, teacher in zip(runs, own)]


def _teacher_options(run: Run) -> Optional[Dict[str, Any]]:
    """Return the keys `DISTILLER.TEACHER…` of a run's configuration; `None` if its method has no teacher."""
    options = run.distiller
    if not has_teacher(options):
        return None
    return {key: value for key, value in options.items() if key.startswith("TEACHER")}


def _build(run: Run, options: Optional[Dict[str, Any]], key: str, own_code: Sequence[str]) -> Teacher:
    if options is None:
        return Teacher("", key, None, "No run here was trained with a teacher.")
    label = plain(options["TEACHER"])
    permitted = [name for name in own_code if may_build(name, options["TEACHER"])]
    was_object = options["TEACHER"].startswith(f"{PREFIX}:")
    if was_object and not options.get("TEACHER_WEIGHTS"):
        why = f"The teacher {label} was an object in Python, and its weights are in no file."
        return Teacher(label, key, None, why)
    if permitted:  # the user's path, not the one that the configuration names
        options = {**options, "TEACHER": permitted[0]}
    elif library_of(options["TEACHER"]) == "user":
        if was_object:
            class_name = plain(options["TEACHER"].rpartition(".")[2])
            why = f"The teacher {label} was an object in Python; name the file with its class: -m FILE.py:{class_name}."
        else:
            why = f"The teacher {label} is somebody's own code; if you trust it, add -m {label}."
        return Teacher(label, key, None, why)
    if options.get("TEACHER_WEIGHTS") == PRETRAINED:
        why = f"The teacher {label} has weights of its library, which a report does not download."
        return Teacher(label, key, None, why)
    cfg = run.source.cfg.clone()
    try:
        merge_known(cfg, {"DISTILLER": options}, str(run.source.path))
        model = build_teacher(cfg, _with_root(run.source.info, cfg.DATASET.ROOT))
    except UserError as error:
        return Teacher(label, key, None, f"The teacher {label} cannot be built: {error}.")
    return Teacher(label, key, model.requires_grad_(False).eval())


def _with_root(info: DatasetInfo, root: str) -> DatasetInfo:
    """Return `info` with the folder of the data set; its class lists may be needed to name a teacher's outputs."""
    return replace(info, root=find_file(root)) if root else info
