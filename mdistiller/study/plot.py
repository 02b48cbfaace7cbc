"""The results of a study as a picture: a point for each seed, their means, and a line for the teacher."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Dict, List, Sequence

from ..atomic_files import replace
from .comparison import Group, labels, teacher_accuracies

PANELS_IN_A_ROW = 3
MIN_SPAN = 4.0  # percentage points that a panel shows at least, so that noise does not look like a difference
POINT, MEAN, TEACHER = "#4878a8", "#1b1b1b", "#c44e52"


def save_plot(path: Path, found: Sequence[Group]) -> None:
    """Write a PNG file with a panel for each pair and variant; nothing without a finished run.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks: Dict[str, List[Group]] = {}
    for group in found:
        if group.summaries:
            blocks.setdefault(group.row.block, []).append(group)
    if not blocks:
        return
    most, width = max(map(len, blocks.values())), min(len(blocks), PANELS_IN_A_ROW)
    height = -(-len(blocks) // width)
    with rc_context({"text.parse_math": False}):  # names may hold dollar signs
        figure = Figure(figsize=(5.5 * width, 0.4 + (1.2 + 0.36 * most) * height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle("Points are seeds, bars their means", fontsize=10)
        panels = list(figure.subplots(height, width, squeeze=False).flat)
        for panel, (block, groups) in zip(panels, blocks.items()):
            draw_panel(panel, block, groups)
        for panel in panels[len(blocks) :]:
            panel.set_visible(False)
        replace(path, lambda file: figure.savefig(file, format="png", dpi=150))


def draw_panel(axes: Any, block: str, groups: Sequence[Group]) -> None:
    """Draw the groups of a block from top to bottom on matplotlib axes."""
    for place, group in enumerate(groups):
        values = group.values("last")
        axes.plot(values, [place] * len(values), "o", color=POINT, alpha=0.6)
        axes.plot(statistics.mean(values), place, "|", color=MEAN, markersize=16, markeredgewidth=2)
    runs = [summary for group in groups for summary in group.summaries.values()]
    teachers = set(teacher_accuracies(runs).values())
    for top1 in teachers:
        axes.axvline(top1, color=TEACHER, linestyle="--", linewidth=1)
    low, high = axes.get_xlim()
    middle, half = (low + high) / 2, max(high - low, MIN_SPAN) / 2
    axes.set_xlim(middle - half, middle + half)
    for top1 in teachers:
        side = "right" if top1 > middle else "left"
        axes.annotate(f" teacher {top1:.2f} ", (top1, -0.8), color=TEACHER, ha=side, va="center", fontsize=9)
    axes.set_yticks(range(len(groups)), labels(groups))
    axes.set_ylim(len(groups) - 0.4, -1.2)
    axes.set_xlabel("top-1, last epoch, %")
    axes.set_title(block, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
