"""A check of `.pt2` files before they are loaded.

`torch.export.load` unpickles parts of the file without restrictions, evaluates its size expressions as Python code, and
calls any PyTorch function that the program names. An untrusted file could therefore run arbitrary code. This check
accepts only what exports of this library contain: plain tensors, size expressions and ATen operators.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Iterator, Tuple

import torch

from ...errors import UserError, one_line

MAX_JSON_BYTES = 64 * 2**20  # of a program
# names without the folder that begins every name in later versions of the format
NEW_FORMAT = re.compile(
    r"data/weights/weight_\d+|data/(weights|constants)/model_\w+_config\.json|data/constants/tensor_\d+"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/[\w.]+|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|version|\.format_version|\.storage_alignment"
)
OLD_FORMAT = re.compile(
    r"serialized_(exported_program\.json|(state_dict|constants|example_inputs)\.pt)|version|extra_files/[\w.]+"
)
OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|eq|ge|le|gt|lt)")
# a size: numbers, symbols such as s0, and arithmetic
SIZE = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, ?(?:positive|nonnegative|integer)=True)*\)|Integer\(-?\d+\)|[su]?\d+(?!\d)"
    r"|(?:Mod|Max|Min|FloorDiv|Eq|Ge|Le|Gt|Lt|Add|Mul)(?=\()|[-+*/(),<>= ])*"
)
FORBIDDEN_KEYS = ("as_custom_obj", "custom_obj", "as_operator")


def check_program(content: bytes, path: Path) -> None:
    """Raise a UserError unless a `.pt2` file contains only what exports of this library contain."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for fault in _faults(archive):
                raise UserError(f"loading {path} could run arbitrary code ({fault}); export the student again")
    except UserError:
        raise
    except Exception as error:  # damaged archives raise many types
        reason = one_line(error)
        raise UserError(f"{path} is damaged or not a .pt2 file ({reason}); export the student again") from None


def _faults(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if len(set(names)) < len(names):
        yield "it has two entries of one name"
    old = "serialized_exported_program.json" in names
    for entry in archive.infolist():
        name = entry.filename if old else entry.filename.partition("/")[2]
        if not (OLD_FORMAT if old else NEW_FORMAT).fullmatch(name):
            yield f"the entry {entry.filename!r:.80} is not expected"
        elif entry.compress_type != zipfile.ZIP_STORED:  # a small file could fill the memory
            yield f"the entry {entry.filename!r:.80} is compressed"
        elif name.endswith(".json") and not name.startswith(("extra/", "extra_files/")):
            if entry.file_size > MAX_JSON_BYTES:
                yield f"{entry.filename} has {entry.file_size} bytes"
            else:
                yield from _program_faults(json.loads(archive.read(entry)))
        elif name.endswith(".pt"):
            fault = _pickle_fault(archive.read(entry))
            if fault:
                yield f"{entry.filename}: {fault}"


def _pickle_fault(data: bytes) -> str:
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes can make the unpickler raise any type
        return one_line(error)
    return ""


def _program_faults(program: Any) -> Iterator[str]:
    for key, value in _entries(program):
        if key == "target" and not (isinstance(value, str) and OPERATOR.fullmatch(value)):
            yield f"the operator {value!r:.80} is not allowed"
        elif key == "expr_str" and not (isinstance(value, str) and SIZE.fullmatch(value)):
            yield f"the size expression {value!r:.80} is not allowed"
        elif (key == "use_pickle" and value) or (key in FORBIDDEN_KEYS and value is not None):
            yield f"the entry {key} is not allowed"


def _entries(value: Any) -> Iterator[Tuple[str, Any]]:
    """Yield the keys and values of all nested dictionaries."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
