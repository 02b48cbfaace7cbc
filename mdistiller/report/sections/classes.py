"""Gain and loss of each class against the reference."""

from __future__ import annotations

from typing import Any, List

import torch

from ..blocks import Figure, Note, Panel, Section, Table, percent, plain
from ..material import Material
from ..measures import class_accuracy
from ..svg import SERIES, draw

MAX_BARS = 30  # classes in a drawing; of more, those that change most
GAIN, LOSS = SERIES[0], SERIES[1]


def classes_section(material: Material) -> Section:
    """Return the change of each class's accuracy."""
    reference = material.runs[material.reference].label
    section = Section(
        "classes",
        "Classes",
        f"Which classes gain and lose against {reference}: the difference of the accuracy on each class's images.",
    )
    if not material.others:
        section.lead = "The accuracy on each class's images."
        section.blocks.append(Note("For gain and loss, give a second run: tools/report.py REFERENCE RUN."))
    accuracy = [class_accuracy(seen.student.logits, seen.target) for seen in material.seen]
    base, target = accuracy[material.reference], material.seen[0].target
    counts = torch.bincount(target, minlength=len(base)).tolist()
    panels = [_bars(material, number, accuracy[number] - base) for number in material.others]
    if panels:
        chosen = f" The {MAX_BARS} classes that change most are drawn." if len(base) > MAX_BARS else ""
        low, high = min(counts), max(counts)
        images = f"{low}" if low == high else f"{low} to {high}"
        section.blocks.append(
            Figure(
                panels,
                f"Change of top-1 in percentage points against {reference}, with {images} validation images a class"
                f" (one image is {100 / max(1, high):.2g} points).{chosen} Best student of each run.",
            )
        )
    head = ["class", "images", *(f"{run.label}, %" for run in material.runs)]
    head += [f"change of {material.runs[number].label}, points" for number in material.others]
    rows: List[List[str]] = []
    for label, name in enumerate(material.classes):
        changes = [accuracy[number][label].item() - base[label].item() for number in material.others]
        rows.append(
            [
                name,
                str(counts[label]),
                *(percent(values[label].item()) for values in accuracy),
                *("–" if change != change else f"{100 * change:+.2f}" for change in changes),
            ]
        )
    section.blocks.append(
        Table(head, rows, "Top-1 of every class.", folded=f"All {len(rows)} classes as a table" if panels else "")
    )
    return section


def _bars(material: Material, number: int, change: torch.Tensor) -> Panel:
    known = [label for label in range(len(change)) if change[label] == change[label]]
    most = sorted(known, key=lambda label: -abs(change[label].item()))[:MAX_BARS]
    order = sorted(most, key=lambda label: -change[label].item())
    names = [plain(material.classes[label], 22) for label in order]
    values = [100 * change[label].item() for label in order]

    def paint(axes: Any) -> None:
        places = range(len(order))
        bars = axes.barh(places, values, color=[GAIN if value >= 0 else LOSS for value in values], height=0.7)
        axes.bar_label(bars, [f"{value:+.1f}".replace("-", "−") for value in values], padding=3, fontsize=11)
        axes.axvline(0, color=axes.spines["left"].get_edgecolor(), linewidth=0.8)
        axes.set_yticks(places, names)
        axes.set_ylim(len(order) - 0.4, -0.6)
        low, high = min([0.0, *values]), max([0.0, *values])
        room = 0.22 * (high - low or 1)
        axes.set_xlim(low - (room if low < 0 else 0), high + (room if high > 0 else 0))
        axes.set_xlabel("change of top-1, points")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)

    label = material.runs[number].label
    up, down = sum(value > 0 for value in values), sum(value < 0 for value in values)
    most_text = (
        f" Largest gain: {names[0]} {values[0]:+.1f}; largest loss: {names[-1]} {values[-1]:+.1f}." if order else ""
    )
    alt = f"Bars of {len(order)} classes: {up} gain, {down} lose.{most_text}"
    return Panel(f"{label}: gain and loss", draw(paint, height=70 + 22 * max(3, len(order))), alt)
