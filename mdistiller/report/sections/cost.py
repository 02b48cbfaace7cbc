"""What students and teachers cost."""

from __future__ import annotations

from typing import List

from ...engine.evaluation.cost import Cost, deployed_cost
from ..blocks import Section, Table, plain
from ..material import Material

MIB = 2**20


def cost_section(material: Material) -> Section:
    """Return the table of parameters, operations and sizes."""
    section = Section("cost", "Cost", "What the deployed models cost, the head of a student included.")
    rows: List[List[str]] = []
    for number in material.distinct_teachers:
        teacher, info = material.teachers[number], material.runs[number].source.info
        assert teacher.model is not None
        cost = deployed_cost(teacher.model, None, info.input_size)
        rows.append([f"teacher {teacher.label}", *_cells(cost), "–"])
    for run in material.runs:
        student = run.source.student
        cost = deployed_cost(student.backbone, student.head, run.source.info.input_size)
        size = run.source.path.stat().st_size
        rows.append([f"{run.label} ({plain(run.source.checkpoint['arch'])})", *_cells(cost), f"{size / MIB:.2f}"])
    section.blocks.append(
        Table(
            ("model", "parameters", "MACs", "weights, MiB", "head: parameters", "head: MACs", "file, MiB"),
            rows,
            "Parameters that the deployed logits depend on. MACs: multiply-accumulate operations of one image, in"
            " convolutions and matrix products, counted by PyTorch's FlopCounterMode. Weights: the parameters in"
            " float32. File: the checkpoint, which also holds the student's own classifier and statistics.",
        )
    )
    return section


def _cells(cost: Cost) -> List[str]:
    weights = f"{4 * cost.parameters / MIB:.2f}"
    return [f"{cost.parameters:,}", f"{cost.macs:,}", weights, f"{cost.head_parameters:,}", f"{cost.head_macs:,}"]
