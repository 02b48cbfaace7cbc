"""Configuration and environment of the runs."""

from __future__ import annotations

from typing import Any, Dict, List

import torch

from ...engine.cfg import CFG, leaves, own_leaves, to_dict
from ...engine.log.run_text import duration
from ...engine.run.environment import describe_hardware, versions
from ..blocks import Section, Table, plain
from ..material import Material
from ..runs import Run

MAX_VALUE = 90  # characters of a value


def configuration_section(material: Material) -> Section:
    """Return the values that differ from the defaults."""
    section = Section(
        "configuration",
        "Configuration",
        "Every key whose value differs from the default in at least one run. config.yaml in a run's folder has all.",
    )
    defaults = dict(leaves(to_dict(CFG)))
    values = [own_leaves(run.config, run.method) for run in material.runs]
    keys = sorted({key for own in values for key, value in own.items() if repr(value) != repr(defaults.get(key))})
    rows: List[List[str]] = []
    marked = []
    for key in keys:
        if len({repr(own.get(key)) for own in values}) > 1:
            marked.append(len(rows))
        cells = [_text(own[key]) if key in own else "–" for own in values]
        rows.append([plain(key), *cells, _text(defaults[key]) if key in defaults else "–"])
    section.blocks.append(
        Table(
            ("key", *(run.label for run in material.runs), "default"),
            rows,
            "Values as the checkpoint records them. A dash: the method does not have the key. Rows with a blue mark"
            " differ between the runs.",
            words=len(material.runs) + 2,
            marked=marked,
        )
    )
    return section


def _text(value: object) -> str:
    return plain('""' if value == "" else value, MAX_VALUE)


def environment_section(material: Material) -> Section:
    """Return where the runs were made, and where this page was."""
    section = Section("environment", "Environment", "The machines and versions of the runs, and of this page.")
    columns: List[Dict[str, Any]] = [_environment(run) for run in material.runs]
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns.append({"hardware": describe_hardware(here), "device": here, **versions()})
    names = list(dict.fromkeys(name for column in columns for name in column))
    section.blocks.append(
        Table(
            ("", *(run.label for run in material.runs), "this page"),
            [[name, *(plain(column.get(name, "–"), MAX_VALUE) for column in columns)] for name in names],
            "From summary.json, which training writes at its end.",
            words=len(material.runs) + 2,
        )
    )
    return section


def _environment(run: Run) -> Dict[str, Any]:
    summary = run.summary
    found: Dict[str, Any] = {
        key: summary[key] for key in ("hardware", "device", "precision", "processes", "seed") if key in summary
    }
    known = summary.get("versions")
    found.update(known if isinstance(known, dict) else {})
    seconds = summary.get("seconds")
    if isinstance(seconds, (int, float)) and 0 <= seconds < 1e9:
        found["duration"] = duration(seconds)
    for key, unit in (("images_per_second", "images/s"), ("peak_memory_mib", "MiB")):
        if isinstance(summary.get(key), (int, float)):
            found[key.replace("_mib", "").replace("_", " ")] = f"{summary[key]:,.0f} {unit}"
    return found
