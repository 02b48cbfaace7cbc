"""Principal components of the pooled features."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from ..blocks import Figure, Note, Panel, Section, percent, plain
from ..material import Material
from ..measures import Axes, principal_axes
from ..svg import SERIES, draw
from .agreement import in_teachers_space


def features_section(material: Material) -> Section:
    """Return the features of teachers and students in two dimensions."""
    section = Section(
        "features",
        "Features",
        "The pooled features that the classifiers consume, projected on their two strongest directions (PCA).",
    )
    chosen = _classes(material)
    panels: List[Panel] = []
    axes: Dict[int, Axes] = {}
    for number in material.distinct_teachers:
        teacher = material.seen[number].teacher
        if teacher is not None and teacher.pooled is not None:
            found = principal_axes(teacher.pooled)
            axes.update({other: found for other in material.with_teacher if material.seen[other].teacher is teacher})
            title = f"Teacher {material.teachers[number].label}"
            panels.append(_scatter(material, number, title, teacher.pooled, found, chosen))
    for number, run in enumerate(material.runs):
        pooled = material.seen[number].student.pooled
        if pooled is None:
            section.blocks.append(Note(f"The student of {run.label} has no pooled feature."))
            continue
        shared = axes.get(number) if in_teachers_space(material, number) else None
        panels.append(_scatter(material, number, run.label, pooled, shared, chosen))
    if panels:
        drawn = (
            f"{len(chosen)} of {len(material.classes)} classes, evenly spread over the labels,"
            if (len(chosen) < len(material.classes))
            else f"All {len(chosen)} classes"
        )
        section.blocks.insert(
            0,
            Figure(
                panels,
                f"{drawn} of {len(material.seen[0].sampled):,} evenly spaced validation images, a point each. A student"
                " that ends in the teacher's own classifier is shown on the teacher's axes, so positions can be"
                " compared; any other one on its own. Percentages: share of the variance, over all classes.",
            ),
        )
    return section


def _classes(material: Material) -> List[int]:
    """Return the labels to draw, as many as there are colours, evenly spread."""
    number = len(material.classes)
    return (
        sorted({round(place * (number - 1) / max(1, len(SERIES) - 1)) for place in range(len(SERIES))})
        if (number > len(SERIES))
        else list(range(number))
    )


def _scatter(
    material: Material, number: int, title: str, features: Tensor, shared: Optional[Axes], chosen: List[int]
) -> Panel:
    axes_found = shared or principal_axes(features)
    points = axes_found.project(features)
    target = material.seen[number].target[material.seen[number].sampled]
    share = (points.var(0) / features.var(0).sum().clamp(min=1e-30)).tolist() if len(points) > 1 else [0.0, 0.0]

    def paint(axes: Any) -> None:
        for label, colour in zip(chosen, SERIES):
            own = points[target == label]
            name = plain(material.classes[label], 18)
            axes.scatter(own[:, 0], own[:, 1], s=9, color=colour, linewidths=0, alpha=0.75, label=name, rasterized=True)
        axes.set_xlabel(f"component 1 ({percent(share[0], 0)} %)")
        axes.set_ylabel(f"component 2 ({percent(share[1], 0)} %)")
        columns = 3 if len(chosen) > 4 else 2
        legend = axes.legend(
            ncols=columns,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            markerscale=2.2,
            columnspacing=0.8,
            handletextpad=0.1,
        )
        for handle in legend.get_patches() + legend.get_lines():
            handle.set_alpha(1)

    whose = "on the teacher's axes" if shared is not None and features is not None else "on its own axes"
    spread = torch.stack([points[target == label].mean(0) for label in chosen if (target == label).any()])
    alt = (
        f"Scatter plot of {len(points)} features of {title}, {whose}; the two components hold"
        f" {percent(share[0], 0)} and {percent(share[1], 0)} % of the variance. The means of {len(spread)} classes are"
        f" {torch.pdist(spread.float()).mean():.3g} apart on average."
    )
    return Panel(title, draw(paint, height=380), alt)
