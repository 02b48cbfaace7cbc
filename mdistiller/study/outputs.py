"""The files that a study writes: results.csv, results.md, results.png and summaries.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from ..atomic_files import replace_text
from .comparison import differences, groups
from .grid import Study
from .plot import save_plot
from .results import Summary, save_summaries
from .tables import csv_table, markdown_tables

LIBRARIES = {"scipy": "scipy", "matplotlib": "matplotlib"}  # names to install, by import name


def write_results(study: Study, summaries: Dict[str, Summary], failed: Dict[str, str], output: Path) -> None:
    """Write the results of the finished runs.

    Args:
        summaries: the summaries of the finished runs, by name of the cell.
        failed: the reason for each run that failed, by name.
        output: the folder of the study; it exists.
    """
    found = groups(study, summaries)
    texts = {
        "results.csv": csv_table(study, summaries, failed),
        "results.md": markdown_tables(study, found, differences(study, found), summaries, failed),
    }
    for name, text in texts.items():
        replace_text(output / name, text)
    save_summaries(output / "summaries.jsonl", study.all_cells(), summaries)
    save_plot(output / "results.png", found)
