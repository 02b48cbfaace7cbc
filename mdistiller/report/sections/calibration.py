"""Whether probabilities can be believed."""

from __future__ import annotations

from typing import Any, List, Tuple

from torch import Tensor

from ..blocks import Figure, Panel, Section, Table, percent
from ..material import TEACHER_COLOR, Material
from ..measures import NUM_BINS, Reliability, reliability
from ..svg import NARROW, draw


def calibration_section(material: Material) -> Section:
    """Return reliability diagrams and calibration errors of students and teachers."""
    section = Section(
        "calibration",
        "Calibration",
        "Whether confidence matches accuracy: of the images with a confidence of 80 %, 80 % should be right.",
    )
    models: List[Tuple[str, str, Tensor, Tensor]] = [
        (run.label, material.color(number), seen.student.logits, seen.target)
        for number, (run, seen) in enumerate(zip(material.runs, material.seen))
    ]
    for number in material.distinct_teachers:
        seen = material.seen[number]
        assert seen.teacher is not None
        label = f"teacher {material.teachers[number].label}"
        models.append((label, TEACHER_COLOR, seen.teacher.logits, seen.target))
    found = [(label, color, reliability(logits, target)) for label, color, logits, target in models]
    section.blocks.append(
        Figure(
            [_diagram(label, color, value) for label, color, value in found],
            f"Above: accuracy of the images in each of {NUM_BINS} bins of confidence, the largest softmax probability"
            " at temperature 1. Bars below the dashed line are overconfident, bars above it underconfident. Below: the"
            " share of images in each bin.",
            narrow=True,
        )
    )
    section.blocks.append(
        Table(
            ("model", "ECE, points", "mean confidence, %", "accuracy, %", "NLL, nats"),
            [
                [
                    label,
                    percent(value.ece),
                    percent(value.mean_confidence),
                    percent(value.mean_accuracy),
                    f"{value.nll:.3f}",
                ]
                for label, _, value in found
            ],
            f"ECE: expected calibration error, the mean gap between confidence and accuracy over the {NUM_BINS} bins,"
            " weighted by their images; 0 is best. NLL: mean negative log-likelihood of the right class; lower is"
            " better.",
        )
    )
    return section


def _diagram(label: str, color: str, value: Reliability) -> Panel:
    width = 1 / NUM_BINS
    centers = [(place + 0.5) * width for place in range(NUM_BINS)]
    total = sum(value.counts)

    def paint(axes: Any) -> None:
        bins, share = axes
        heights = [0.0 if accuracy != accuracy else accuracy for accuracy in value.accuracy]
        ink = bins.spines["left"].get_edgecolor()
        bins.bar(centers, heights, width=0.92 * width, color=color)
        bins.plot([0, 1], [0, 1], linestyle="--", color=ink, linewidth=1.2)
        bins.set_ylabel("accuracy")
        bins.set_ylim(0, 1.02)
        bins.tick_params(labelbottom=False)
        bins.text(0.03, 0.93, f"ECE {100 * value.ece:.1f} points", transform=bins.transAxes, va="top")
        share.bar(centers, [100 * count / total for count in value.counts], width=0.92 * width, color=color, alpha=0.6)
        share.set_ylabel("images, %")
        share.set_xlabel("confidence")
        for part in (bins, share):
            part.set_xlim(0, 1)

    alt = (
        f"Reliability diagram of {label}: expected calibration error {percent(value.ece)} points, mean confidence"
        f" {percent(value.mean_confidence)} %, accuracy {percent(value.mean_accuracy)} %."
    )
    return Panel(label, draw(paint, NARROW, height=340, grid=(2, 1)), alt)
