"""Where student and teacher decide alike."""

from __future__ import annotations

from typing import Any, Dict, List

import torch
import torch.nn.functional as F

from ..blocks import Figure, Note, Panel, Section, Table, percent
from ..material import Material
from ..measures import Agreement, agreement
from ..svg import SERIES, draw

PARTS = (
    ("both right", SERIES[2]),
    ("only the teacher", SERIES[1]),
    ("only the student", SERIES[0]),
    ("both wrong", SERIES[6]),
)


def agreement_section(material: Material) -> Section:
    """Return how often each student names its teacher's class, and who is right."""
    section = Section(
        "agreement",
        "Teacher and student",
        "How often a student names the same class as the teacher, right or wrong, and which of the two is right.",
    )
    section.blocks += [Note(why) for why in material.why_no_teacher()]
    if not material.with_teacher:
        return section
    found = {number: _compare(material, number) for number in material.with_teacher}
    rows: List[List[str]] = []
    for number, value in found.items():
        rows.append(
            [
                material.runs[number].label,
                material.teachers[number].label,
                *(percent(part) for part in value[:5]),
                f"{value.divergence:.3f}",
                _similarity(material, number),
            ]
        )
    head = ("run", "teacher", "same class, %", *(f"{name}, %" for name, _ in PARTS), "KL, nats", "cosine")
    section.blocks.append(Figure([_bars(material, found)], "All validation images, by who names the right class."))
    section.blocks.append(
        Table(
            head,
            rows,
            "Same class: the largest logit is that of the same class. KL: mean divergence of the student's"
            " probabilities from the teacher's, at temperature 1. Cosine: mean similarity of the deployed student's"
            " pooled feature with the teacher's, for students that end in its classifier, over the images of"
            " Features below. A run that was trained alone is compared with the other runs' teacher.",
            words=2,
        )
    )
    return section


def _compare(material: Material, number: int) -> Agreement:
    seen = material.seen[number]
    assert seen.teacher is not None
    return agreement(seen.student.logits, seen.teacher.logits, seen.target)


def _similarity(material: Material, number: int) -> str:
    seen = material.seen[number]
    if not in_teachers_space(material, number):
        return "–"
    assert seen.teacher is not None and seen.student.pooled is not None and seen.teacher.pooled is not None
    return f"{F.cosine_similarity(seen.student.pooled, seen.teacher.pooled).mean():.3f}"


def in_teachers_space(material: Material, number: int) -> bool:
    """Return whether the pooled feature of a student is what the teacher's own classifier consumes."""
    seen, head = material.seen[number], material.runs[number].source.student.head
    if head is None or seen.teacher is None or seen.student.pooled is None or seen.teacher.pooled is None:
        return False
    model: Any = material.teachers[number].model
    weight = model.get_classifier().weight.detach().cpu()
    return weight.shape == head.classifier.weight.shape and torch.equal(weight, head.classifier.weight.detach().cpu())


def _bars(material: Material, found: Dict[int, Agreement]) -> Panel:
    labels = [material.runs[number].label for number in found]

    def paint(axes: Any) -> None:
        left = [0.0] * len(found)
        for place, (name, color) in enumerate(PARTS, start=1):
            widths = [100 * value[place] for value in found.values()]
            bars = axes.barh(range(len(labels)), widths, left=left, color=color, label=name, height=0.6)
            written = [f"{width:.1f}" if width >= 8 else "" for width in widths]
            axes.bar_label(bars, written, label_type="center", color="white", fontsize=11, fontweight="bold")
            left = [start + width for start, width in zip(left, widths)]
        axes.set_xlim(0, 100)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlabel("images, %")
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1.2)

    said = "; ".join(
        f"{label}: " + ", ".join(f"{name} {percent(value[place], 1)} %" for place, (name, _) in enumerate(PARTS, 1))
        for label, value in zip(labels, found.values())
    )
    return Panel("Who is right", draw(paint, height=140 + 44 * len(found)), f"Bars of 100 %. {said}.")
