"""What to export."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Iterator, Union

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}


@dataclass(frozen=True)
class Options:
    """What to export.

    Attributes:
        format: the format: `onnx`, `torch` or `safetensors`.
        half: whether to use float16 instead of float32.
        int8: whether to use 8-bit integers, for ONNX only.
        output: the file, or a folder; by default `export/<format>/`, or `export/<format>-<precision>/`, beside the
            checkpoint.
        overwrite: whether to replace an earlier export.
        max_drop: the largest loss of top-1 of `half` and `int8`, in percentage points.
        use_data: whether to prove on the validation set; otherwise on random images.
        teacher_license: the license of the teacher's weights, named in the card.
        model: the name of the student's backbone, see `read_source`.
    """

    format: str = "onnx"
    half: bool = False
    int8: bool = False
    output: Union[str, os.PathLike[str], None] = None
    overwrite: bool = False
    max_drop: float = 0.5
    use_data: bool = True
    teacher_license: str = ""
    model: str = ""

    @property
    def precision(self) -> str:
        """`float32`, `float16` or `int8`."""
        return "float16" if self.half else "int8" if self.int8 else "float32"

    def faults(self) -> Iterator[str]:
        """Yield one line for each option that is invalid or contradicts another."""
        if self.format not in SUFFIXES:
            yield f"--format is {self.format!r}; expected one of {', '.join(SUFFIXES)}"
        if self.half and self.int8:
            yield "--half and --int8 exclude each other; give one"
        if self.int8 and self.format != "onnx":
            yield f"--int8 is for --format onnx, given {self.format}; use --format onnx, or --half"
        if self.int8 and not self.use_data:
            yield "--int8 is calibrated on training images, so it excludes --no-data; give the data set"
        if not 0 <= self.max_drop <= 100:
            yield f"--max-drop is {self.max_drop:g}; expected percentage points from 0 to 100"
