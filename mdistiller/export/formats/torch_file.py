"""Exports as a program of `torch.export` (`.pt2`): writing, opening, and running in a fresh process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Optional, Type

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UserError, one_line
from ..description import INPUT, Description, read_description
from ..runner import Runner, checked_runner
from ..source import to_input
from .pt2_check import check_program
from .tracing import exporting

EXTRA_FILE = "mdistiller.json"
EXPORTERS = {False: "torch.export.export(strict=False)", True: "torch.export.export(strict=True)"}
WORKER = Path(__file__).with_name("torch_worker.py")


def write_torch(model: nn.Module, image: Tensor, path: Path, description: Description, strict: bool) -> None:
    """Write `model` to `path` by `torch.export.save`, for any number of images; see `onnx_program`.

    Args:
        model, image: see `onnx_program`.
        path: the path of the file, which is replaced.
        description: the text for its metadata.
        strict: whether to read the bytecode of `forward`; otherwise `forward` is run, and what it does is recorded.

    Raises:
        ExporterFailed: PyTorch cannot export the model.
    """
    with exporting():
        shapes = {INPUT: {0: torch.export.Dim("batch")}}
        program = torch.export.export(model, (image,), dynamic_shapes=shapes, strict=strict)
        for node in program.graph.nodes:  # lines of code, with folders of this machine
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
                node.meta.pop(key, None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={EXTRA_FILE: json.dumps(description.metadata())})
    path.write_bytes(buffer.getvalue())


def read_program(path: Path) -> bytes:
    """Return the content of a `.pt2` file that runs no code while it is loaded; see `check_program`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fix its permissions") from None
    check_program(content, path)
    return content


def open_torch(path: Path) -> Runner:
    """Load an export by `torch.export.load`, on the CPU.

    Raises:
        UserError: the file is damaged, could run code, or is not an export of this library.
    """
    content = read_program(path)
    extra: Dict[str, Any] = {EXTRA_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(io.BytesIO(content), extra_files=extra).module()
    except Exception as error:  # damaged programs raise many types
        reason = one_line(error)
        raise UserError(
            f"this PyTorch {torch.__version__} cannot load {path} ({reason}); use the version that made it, or export"
            " the student again"
        ) from None
    description = _description(extra[EXTRA_FILE], path)

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(image)).numpy()

    return checked_runner(path, description.classes, description.view, run)


def _description(text: Any, path: Path) -> Description:
    try:
        metadata = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        metadata = {}
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return read_description({key: value for key, value in texts if isinstance(value, str)}, path)


class FreshProcess:
    """Runs a `.pt2` file in a new Python process that imports PyTorch and NumPy alone.

    Args:
        path: the path of an export of this library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        threads = str(torch.get_num_threads())
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(WORKER), str(path), threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, pixels: Tensor) -> Tensor:
        """Return the logits float32 [B, K] of images uint8 [B, S, S, 3].

        Raises:
            UserError: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            question = io.BytesIO()
            np.save(question, to_input(pixels).numpy(), allow_pickle=False)
            self._process.stdin.write(len(question.getvalue()).to_bytes(8, "little") + question.getvalue())
            self._process.stdin.flush()
            length = int.from_bytes(self._process.stdout.read(8), "little")
            return torch.from_numpy(np.load(io.BytesIO(self._process.stdout.read(length)), allow_pickle=False))
        except (OSError, EOFError, ValueError):
            raise UserError(f"{self.path} does not run in a fresh process with PyTorch {torch.__version__}") from None
