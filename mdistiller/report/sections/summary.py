"""The first section: accuracies, and the difference to the reference."""

from __future__ import annotations

from typing import List

from ..blocks import Facts, Note, Section, Table, percent, plain
from ..material import Material, teacher_right
from ..measures import paired_difference
from ..runs import Run


def summary_section(material: Material) -> Section:
    """Return the table of accuracies."""
    runs, reference = material.runs, material.runs[material.reference]
    info, sizes = reference.source.info, sorted({run.source.info.input_size for run in runs})
    section = Section(
        "summary",
        "Summary",
        f"{material.num_images:,} validation images of {plain(info.name)}, {info.num_classes} classes,"
        f" {' and '.join(map(str, sizes))} px. Every student and every teacher saw all of them once, in float32.",
    )
    if len(material.in_focus) == 1:
        section.blocks.append(_facts(material, material.in_focus[0]))
    rows: List[List[str]] = []
    for number, run in enumerate(runs):
        right = material.right(number)
        if number == material.reference:
            change = "reference"
        else:
            difference, half = paired_difference(right, material.right(material.reference))
            change = f"{100 * difference:+.2f} ± {100 * half:.2f}"
        rows.append(
            [
                run.label,
                run.method_in_words,
                plain(run.source.checkpoint["arch"]),
                percent(right.float().mean().item()),
                _last_top1(run),
                change if material.others else "–",
            ]
        )
    for number in material.distinct_teachers:
        accuracy = teacher_right(material.seen[number]).float().mean().item()
        rows.append(["teacher", "–", material.teachers[number].label, percent(accuracy), "–", "–"])
    section.blocks.append(
        Table(
            ("run", "method", "model", "top-1, %", "last epoch, %", "difference, points"),
            rows,
            "Top-1 was measured for this page on the student that would be shipped (student_best.pth: its epoch was"
            " chosen on these images). The last epoch's accuracy, from the run's log, does not have that advantage. The"
            f" difference is to {reference.label} on the same images, with its 95 % interval; the interval covers the"
            " choice of the images, not that of the seed.",
            words=3,
        )
    )
    section.blocks += [Note(why) for why in material.why_no_teacher()]
    unfinished = [run.label for run in runs if not run.summary]
    if unfinished:
        section.blocks.append(
            Note(f"These runs are not finished, so they have no summary.json: {', '.join(unfinished)}.")
        )
    return section


def _last_top1(run: Run) -> str:
    """Return the accuracy of the run's last evaluation, with the epoch if that is not the last one."""
    top1 = run.series("deployed_top1")
    if not top1:
        return "–"
    epoch = max(top1)
    return f"{top1[epoch]:.2f}" + ("" if epoch == run.rows[-1]["epoch"] else f" (epoch {epoch})")


def _facts(material: Material, number: int) -> Facts:
    """Return what a reader asks first about a run."""
    right, seen = material.right(number), material.seen[number]
    facts = [(f"{percent(right.float().mean().item())} %", f"top-1 of {material.runs[number].label}")]
    if number != material.reference:
        difference, _ = paired_difference(right, material.right(material.reference))
        facts.append(
            (f"{100 * difference:+.2f}".replace("-", "−"), f"points against {material.runs[material.reference].label}")
        )
    if seen.teacher is not None:
        label = material.teachers[number].label
        difference, _ = paired_difference(right, teacher_right(seen))
        same = (seen.student.logits.argmax(1) == seen.teacher.logits.argmax(1)).float().mean().item()
        facts.append((f"{100 * difference:+.2f}".replace("-", "−"), f"points against the teacher {label}"))
        facts.append((f"{percent(same)} %", "of the images get the teacher's class"))
    return Facts(facts)
