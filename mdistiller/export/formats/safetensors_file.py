"""Exports of the weights and their description as a safetensors file, which `read_checkpoint` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict

from ...engine.checkpoint.student_safetensors import STUDENT, pack_student
from ..description import Description

MADE_BY = "safetensors"


def write_safetensors(checkpoint: Dict[str, Any], path: Path, description: Description, half: bool = False) -> None:
    """Write a student's checkpoint to `path`. Absolute paths in its configuration are reduced to their last part.

    Args:
        checkpoint: a checkpoint that describes itself, see `mdistiller/engine/checkpoint/student.py`.
        path: the file.
        description: the description of the export, which goes into the metadata too.
        half: whether to store float16; the loader computes in float32.
    """
    from safetensors.torch import save

    config = _without_folders(checkpoint["config"])
    tensors, rest = pack_student({**checkpoint, "arch": description.arch, "config": config}, half)
    path.write_bytes(save(tensors, {**description.metadata(), STUDENT: rest}))


def _without_folders(value: Any) -> Any:
    """Return part of a configuration in which each absolute path is replaced by its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    return os.path.basename(os.path.normpath(value)) if isinstance(value, str) and os.path.isabs(value) else value
