"""Opens students in every form, by the suffix of the file."""

from __future__ import annotations

import os
from typing import Sequence

from ..engine.checkpoint import find_checkpoint
from ..errors import UserError
from .formats.onnx_file import open_onnx
from .formats.torch_file import open_torch
from .runner import Runner, source_runner
from .source import read_source

OPENERS = {".onnx": open_onnx, ".pt2": open_torch}
CHECKPOINTS = (".pth", ".pt", ".safetensors", ".ckpt", ".tar")


def open_runner(path: str | os.PathLike[str], overrides: Sequence[str] = (), model: str = "") -> Runner:
    """Open a checkpoint, a run folder, or an export (`.onnx`, `.pt2`, `.safetensors`).

    Args:
        path: the file or folder.
        overrides, model: see `read_source`.

    Raises:
        UserError: the file is missing, damaged, hostile, of an unknown format, or needs a library that is missing.
    """
    file = find_checkpoint(path)
    if not file.is_file():
        raise UserError(f"no student at {file}; give a checkpoint, a run folder, or an export (.onnx, .pt2)")
    opener = OPENERS.get(file.suffix.lower())
    if opener is None:
        if file.suffix.lower() not in CHECKPOINTS:
            given = f"the unknown format {file.suffix!r}" if file.suffix else "no suffix"
            raise UserError(f"{file} has {given}; expected .pth, .onnx, .pt2 or .safetensors")
        return source_runner(read_source(file, overrides, model))
    return opener(file)
