"""The deployment proofs of students in several formats, as rows of a Markdown table."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Iterator, Sequence

from ..errors import UserError
from .card import shown_model
from .export import export_student
from .options import Options
from .source import read_source

FORMATS = {
    "ONNX": Options("onnx"),
    "ONNX `--half`": Options("onnx", half=True),
    "ONNX `--int8`": Options("onnx", int8=True),
    "torch": Options("torch"),
    "safetensors": Options("safetensors"),
}
HEADER = """\
| student | method | file | top-1 | change | agreement | logit difference | MiB | ms, batch 1 | ms, batch 64 |
|---|---|---|---|---|---|---|---|---|---|"""


def proof_rows(path: str | os.PathLike[str], overrides: Sequence[str] = (), model: str = "") -> Iterator[str]:
    """Export a student in each of `FORMATS` to a temporary folder; yield a row of the table for each.

    Args:
        path, overrides, model: see `read_source`.

    Raises:
        UserError: the student cannot be read, or, after all rows, an export was refused.
    """
    about = read_source(path, overrides, model).checkpoint
    method = about["config"].get("DISTILLER", {}).get("TYPE", "")
    start, faults = f"| {shown_model(about['arch'])} | {method}", []
    for name, options in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                proof = export_student(path, replace(options, output=folder, model=model), overrides).proof
            except UserError as error:
                faults += [f"{path}, {name}: {fault}" for fault in error.faults]
                yield f"{start} | {name} | refused | | | | | | |"
                continue
        yield (
            f"{start} | {name} | {proof.top1:.2f} | {proof.top1_change:+.2f} | {proof.agreement:.2f}"
            f" | {proof.difference:.2g} of {proof.scale:.3g} | {proof.size / 2**20:.2f}"
            f" | {proof.latency[1]:.2f} | {proof.latency[64]:.1f} |"
        )
    if faults:
        raise UserError(*faults)
