"""Training curves, from metrics.jsonl."""

from __future__ import annotations

import math
from typing import Any, Dict, List

from ..blocks import Figure, Note, Panel, Section
from ..material import TEACHER_COLOR, Material, teacher_right
from ..runs import Run
from ..svg import SERIES, draw, log_scale


def training_section(material: Material) -> Section:
    """Return the curves of accuracy, losses and learning rate."""
    section = Section("training", "Training", "What each run logged after its epochs.")
    empty = [run.label for run in material.runs if not run.rows]
    if empty:
        section.blocks.append(Note(f"metrics.jsonl has no complete row yet: {', '.join(empty)}."))
    if len(empty) == len(material.runs):
        return section
    curves = [
        _accuracy(material, "deployed_top1", "Validation top-1, %", teacher=True),
        _accuracy(material, "train_top1", "Training top-1, %"),
        _accuracy(material, "lr", "Learning rate"),
    ]
    if any("probe_top1" in row for run in material.runs for row in run.rows):
        curves.append(_accuracy(material, "probe_top1", "Own classifier, top-1, %"))
    section.blocks.append(
        Figure(
            curves,
            "Accuracy of the deployed student on the validation images; accuracy on the augmented training images,"
            " averaged over the steps of an epoch; and the learning rate after the epoch's last step. The dashed line"
            " is the teacher on the validation images, measured for this page. Own classifier: validation top-1 of"
            " the bare student with its own classifier, where a head replaces it.",
        )
    )
    losses = [_losses(run) for run in material.runs if run.rows]
    section.blocks.append(
        Figure(
            losses,
            "Mean of each loss over the steps of an epoch, with its weight. Losses of different methods are different"
            " quantities: compare their course, not their height.",
        )
    )
    return section


def _accuracy(material: Material, key: str, title: str, teacher: bool = False) -> Panel:
    series = {number: run.series(key) for number, run in enumerate(material.runs)}

    def paint(axes: Any) -> None:
        for number, values in series.items():
            if values:
                # later lines are thinner, so that equal ones are seen
                width = 2 + (1.2 * (len(series) - 1 - number) if key == "lr" else 0)
                _line(axes, values, color=material.color(number), label=material.runs[number].label, linewidth=width)
        for number in material.distinct_teachers if teacher else []:
            top1 = 100 * teacher_right(material.seen[number]).float().mean().item()
            axes.axhline(top1, color=TEACHER_COLOR, linestyle="--", label=material.teachers[number].label)
        _finish(axes)

    ends = "; ".join(
        f"{material.runs[number].label} ends at {values[max(values)]:.4g}"
        for number, values in series.items()
        if values
    )
    return Panel(title, draw(paint), f"{title} by epoch. {ends}.")


def _losses(run: Run) -> Panel:
    names = sorted({key for row in run.rows for key in row if key.startswith("loss_")}) or ["loss"]
    parts: Dict[str, Dict[int, float]] = {name: run.series(name) for name in names}

    def paint(axes: Any) -> None:
        for place, (name, values) in enumerate(parts.items()):
            if values:
                _line(axes, values, color=SERIES[(place + 3) % len(SERIES)], label=name.partition("_")[2] or name)
        finite: List[float] = [v for values in parts.values() for v in values.values() if math.isfinite(v)]
        if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
            log_scale(axes)
        elif finite and max(finite) > 0:
            axes.set_ylim(min(0, *finite), 1.06 * max(finite))
        _finish(axes)

    ends = "; ".join(f"{name} ends at {values[max(values)]:.4g}" for name, values in parts.items() if values)
    return Panel(f"Losses of {run.label}", draw(paint), f"Losses of {run.label} by epoch: {ends}.")


def _line(axes: Any, values: Dict[int, float], **options: Any) -> None:
    marker = "o" if len(values) <= 30 else None
    axes.plot(list(values), list(values.values()), marker=marker, markersize=4, **options)


def _finish(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
