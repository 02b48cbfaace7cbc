"""Principal components of the pooled features."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from torch import Tensor

from ..blocks import Figure, Note, Panel, Section, percent
from ..collect import feature_classes
from ..material import Material
from ..measures import Axes, principal_axes
from ..svg import NARROW, SERIES, draw
from .agreement import in_teachers_space


def features_section(material: Material) -> Section:
    """Return the features of teachers and students in two dimensions."""
    section = Section(
        "features",
        "Features",
        "The pooled features that the classifiers consume, projected on their two strongest directions (PCA).",
    )
    panels: List[Panel] = []
    axes: Dict[int, Axes] = {}  # a teacher's, by the runs that are compared with it
    for number in material.distinct_teachers:
        teacher = material.seen[number].teacher
        if teacher is not None and teacher.pooled is not None:
            found = principal_axes(teacher.pooled)
            axes.update({other: found for other in material.with_teacher if material.seen[other].teacher is teacher})
            title = f"Teacher {material.teachers[number].label}"
            panels.append(_scatter(material, number, title, teacher.pooled, found))
    for number, run in enumerate(material.runs):
        pooled = material.seen[number].student.pooled
        if pooled is None:
            section.blocks.append(Note(f"The student of {run.label} has no pooled feature."))
            continue
        shared = axes.get(number) if in_teachers_space(material, number) else None
        panels.append(_scatter(material, number, run.label, pooled, shared))
    if panels:
        section.blocks.insert(0, _figure(material, panels))
    return section


def _figure(material: Material, panels: List[Panel]) -> Figure:
    labels, number = feature_classes(len(material.classes)), len(material.classes)
    chosen = f"all {number} classes" if len(labels) == number else f"{len(labels)} of {number} classes, evenly spread"
    return Figure(
        panels,
        f"{len(material.seen[0].sampled):,} validation images of {chosen}, a point each. A student that ends in the"
        " teacher's own classifier is shown on the teacher's axes, so positions can be compared; any other one on its"
        " own. Percentages: share of the variance of these features.",
        narrow=True,
        legend=[(material.classes[label], color) for label, color in zip(labels, SERIES)],
    )


def _scatter(material: Material, number: int, title: str, features: Tensor, shared: Optional[Axes]) -> Panel:
    points = (shared or principal_axes(features)).project(features)
    target = material.seen[number].target[material.seen[number].sampled]
    total = features.var(0, unbiased=False).sum().clamp(min=1e-30)
    share = [percent(value, 0) for value in (points.var(0, unbiased=False) / total).tolist()]

    def paint(axes: Any) -> None:
        for label, color in zip(feature_classes(len(material.classes)), SERIES):
            own = points[target == label]
            axes.scatter(own[:, 0], own[:, 1], s=10, color=color, linewidths=0, alpha=0.75, rasterized=True)
        axes.set_xlabel(f"component 1 ({share[0]} %)")
        axes.set_ylabel(f"component 2 ({share[1]} %)")

    whose = "its own axes" if shared is None else "the teacher's axes"
    alt = (
        f"Scatter plot of {len(points)} features of {title} on {whose}; the two components hold {share[0]} and"
        f" {share[1]} % of their variance."
    )
    return Panel(title, draw(paint, NARROW, NARROW), alt)
