"""Exports of the weights and their description as a safetensors file, which `read_checkpoint` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

from ...engine.checkpoint.student_safetensors import STUDENT, pack_student
from ..description import Description

MADE_BY = "safetensors"


def write_safetensors(checkpoint: Dict[str, Any], path: Path, description: Description, half: bool = False) -> None:
    """Write a student's checkpoint to `path`.

    Args:
        checkpoint: described, see `mdistiller/engine/checkpoint/student.py`.
        path: the file.
        description: goes into the metadata too.
        half: store float16; the loader computes in float32.
    """
    from safetensors.torch import save

    tensors, rest = pack_student(checkpoint, half)
    path.write_bytes(save(tensors, {**description.metadata(), STUDENT: rest}))
