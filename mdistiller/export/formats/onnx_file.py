"""Exports in the ONNX format: writing by either of PyTorch's exporters, and opening in ONNX Runtime."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UserError, one_line
from ..description import INPUT, OUTPUT, Description, read_description
from ..runner import Runner, checked_runner
from .tracing import exporting

EXPORTERS = {True: "torch.onnx.export(dynamo=True)", False: "torch.onnx.export(dynamo=False)"}
OPSET = {True: 18, False: 17}  # by dynamo; the newest that PyTorch 2.4 writes is 20
MAX_BYTES = 2**31  # of a protocol buffer
PACKAGES = "onnx onnxruntime onnxscript"


def need(*names: str) -> Tuple[ModuleType, ...]:
    """Import libraries.

    Raises:
        UserError: one is not installed.
    """
    import importlib

    try:
        return tuple(importlib.import_module(name) for name in names)
    except ImportError as error:
        raise UserError(f"ONNX files need {' and '.join(names)} ({error}); run: pip install {PACKAGES}") from None


def has_new_exporter() -> bool:
    """Return whether PyTorch has the exporter that is built on `torch.export`, with its libraries."""
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        return False
    try:
        import onnxscript  # noqa: F401
    except Exception:  # it fails in several ways on Python versions that it does not support
        return False
    return True


def onnx_program(model: nn.Module, image: Tensor, dynamo: bool) -> bytes:
    """Return `model` as an ONNX file: input `image [N, 3, S, S]`, output `logits [N, K]`, any `N`.

    Args:
        model: a model that takes float32 images to float32 logits.
        image: an example of its input, with `N` > 1.
        dynamo: whether to use the exporter that is built on `torch.export`, not the one that is built on TorchScript.

    Raises:
        ExporterFailed: PyTorch cannot export the model.
    """
    names: Dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "opset_version": OPSET[dynamo]}
    if dynamo:
        names.update(dynamo=True, dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}, verbose=False)
    else:
        names["dynamic_axes"] = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
        if "dynamo" in inspect.signature(torch.onnx.export).parameters:
            names["dynamo"] = False
    with exporting():
        export: Any = torch.onnx.export
        if dynamo:
            return export(model, (image,), **names).model_proto.SerializeToString()
        content = io.BytesIO()
        export(model, (image,), content, **names)
        return content.getvalue()


def write_onnx(content: bytes, path: Path, description: Description) -> None:
    """Write an ONNX file.

    Args:
        content: the file, as `onnx_program` returns it.
        path: the path to write to; a file there is replaced.
        description: the text for its metadata, which replaces what is there.
    """
    (onnx,) = need("onnx")
    model = onnx.load_model_from_string(content)
    for node in model.graph.node:  # the new exporter notes the lines of code, with folders of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        if hasattr(value, "metadata_props"):
            del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for key, text in description.metadata().items():
        model.metadata_props.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())


def open_onnx(path: Path) -> Runner:
    """Open an export in ONNX Runtime, on the CPU.

    Raises:
        UserError: the file is damaged, has its weights in other files, or is not an export of this library.
    """
    onnx, runtime = need("onnx", "onnxruntime")
    try:
        content = path.read_bytes() if path.stat().st_size < MAX_BYTES else b""
        model = onnx.load_model_from_string(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fix its permissions") from None
    except Exception:  # protocol buffers raise types of their own
        raise UserError(f"{path} is damaged or not an ONNX file; export the student again") from None
    if not model.graph.node:
        raise UserError(f"{path} is damaged or not an ONNX file; export the student again")
    if _has_external_data(model):
        raise UserError(f"{path} reads its weights from other files, which is not safe; export the student again")
    description = read_description({entry.key: entry.value for entry in model.metadata_props}, path)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # fatal; errors are raised
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's types have no common base
        reason = one_line(error)
        raise UserError(f"ONNX Runtime cannot load {path} ({reason}); export the student again") from None
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    if inputs != [INPUT] or outputs != [OUTPUT]:
        raise UserError(
            f"{path} has the inputs {inputs} and outputs {outputs}; expected {[INPUT]} and {[OUTPUT]}, as"
            " tools/export.py writes them"
        )

    def run(image: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], {INPUT: image})[0]

    return checked_runner(path, description.classes, description.view, run)


def _has_external_data(message: Any) -> bool:
    """Return whether a tensor anywhere in a protocol buffer is stored in another file."""
    if message.DESCRIPTOR.name == "TensorProto":
        return message.data_location == 1 or len(message.external_data) > 0
    for field, value in message.ListFields():
        if field.message_type is not None:
            repeated = not hasattr(value, "ListFields")
            if any(_has_external_data(part) for part in (value if repeated else [value])):
                return True
    return False
