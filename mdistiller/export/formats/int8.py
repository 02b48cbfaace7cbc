"""Static quantization of an ONNX export to 8 bits, by ONNX Runtime, with the most sensitive layers left in float.

Each step leaves one more layer in float, until the loss of accuracy is small enough.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set

import numpy as np
from torch import Tensor

from ...errors import UserError
from ..description import INPUT, Description
from ..proof import BATCH, Evidence, Proof
from ..source import to_input
from .onnx_file import need, open_onnx, write_onnx

NUM_CALIBRATION = 512  # training images from which the ranges of activations are measured
NUM_RANKING = 128  # of them, on which layers are compared
LAYERS = ("Conv", "Gemm", "MatMul")
QUANTIZED = (*LAYERS, "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")


@dataclass(frozen=True)
class Step:
    """A trial of the search.

    Attributes:
        in_float: the names of the layers left in float.
        num_layers: the number of all layers.
        proof: the proof of the file that the trial wrote.
    """

    in_float: Sequence[str]
    num_layers: int
    proof: Proof

    def __str__(self) -> str:
        kept = f"{', '.join(self.in_float)} in float" if self.in_float else "none in float"
        change = f"top-1 {self.proof.top1:.2f} ({self.proof.top1_change:+.2f})"
        return f"{self.num_layers - len(self.in_float)} of {self.num_layers} layers in int8, {kept}: {change}"


class Quantizer:
    """Quantizes a float32 ONNX file, after one calibration.

    Weights are signed 8-bit integers with one scale per output channel, activations signed 8-bit integers with one
    scale and zero point per tensor, from the smallest and the largest value over the calibration images. The
    normalization before the first layer and the logits stay in float.

    Args:
        path: the path of a float32 export.
        calibration: the calibration images, uint8 [n, S, S, 3].
        folder: the folder for temporary files.
    """

    def __init__(self, path: Path, calibration: Tensor, folder: Path) -> None:
        need("onnx", "onnxruntime")
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self._model = load_model_with_shape_infer(path)
        _name_nodes(self._model)
        self.layers: List[str] = [node.name for node in self._model.graph.node if node.op_type in LAYERS]
        self._before = _before_first_layer(self._model)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            calibrator = create_calibrator(
                path,
                list(QUANTIZED),
                augmented_model_path=str(Path(place, "augmented.onnx")),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Reader(calibration))
            self._ranges = calibrator.compute_data()
            del calibrator  # it holds the file open

    def write(self, path: Path, in_float: Sequence[str]) -> None:
        """Write the model to `path`, quantized except for the layers `in_float`."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        quantizer = QDQQuantizer(
            copy.deepcopy(self._model),
            True,  # per channel
            False,  # the full range of 8 bits
            QuantType.QInt8,
            QuantType.QInt8,
            self._ranges,
            [],
            [*self._before, *in_float, *self._beside(in_float)],
            list(QUANTIZED),
            {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},  # logits beyond the ranges would be cut off
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(path), False)

    def _beside(self, layers: Sequence[str]) -> List[str]:
        """Return the activations, sums and so on next to some layers, which would round what these compute."""
        nodes = self._model.graph.node
        touched = {name for node in nodes if node.name in layers for name in (*node.input, *node.output)}
        return [n.name for n in nodes if n.op_type not in LAYERS and touched.intersection((*n.input, *n.output))]


def quantize(
    path: Path, output: Path, calibration: Tensor, evidence: Evidence, description: Description, max_drop: float
) -> Iterator[Step]:
    """Quantize the float32 export at `path` to `output`; yield each step. The last one's loss is at most `max_drop`.

    Layers are ordered by the error of the logits when each is quantized alone.

    Raises:
        UserError: the loss is too large whatever layers stay in float.
    """
    quantizer = Quantizer(path, calibration, output.parent)
    in_float: List[str] = []
    ranking: Optional[List[str]] = None
    while True:
        with _silent():
            quantizer.write(output, in_float)
            write_onnx(output.read_bytes(), output, description)
            proof = evidence.prove(open_onnx(output).run, "ONNX Runtime", output.stat().st_size)
        yield Step(tuple(in_float), len(quantizer.layers), proof)
        if not proof.fault(exact=False, max_drop=max_drop):
            return
        if len(in_float) + 1 >= len(quantizer.layers):
            raise UserError(
                f"int8 loses {proof.loss:.2f} points of top-1 even with {len(in_float)} of {len(quantizer.layers)}"
                f" layers in float; give a larger --max-drop than {max_drop:g}, or use --half"
            )
        if ranking is None:
            ranking = by_sensitivity(quantizer, path, output, calibration[:NUM_RANKING], description)
        in_float.append(ranking[len(in_float)])


def by_sensitivity(
    quantizer: Quantizer, path: Path, output: Path, pixels: Tensor, description: Description
) -> List[str]:
    """Return the layers in descending order of the error of the logits when only that layer is quantized."""
    expected = open_onnx(path).run(pixels)
    errors: Dict[str, float] = {}
    with _silent():
        for layer in quantizer.layers:
            quantizer.write(output, [other for other in quantizer.layers if other != layer])
            write_onnx(output.read_bytes(), output, description)
            errors[layer] = float((open_onnx(output).run(pixels) - expected).square().mean())
    return sorted(errors, key=lambda layer: -errors[layer])


class _Reader:
    """Yields the calibration images one batch at a time, as ONNX Runtime's `CalibrationDataReader`."""

    def __init__(self, pixels: Tensor) -> None:
        self._batches = iter(pixels.split(BATCH))

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: to_input(batch).numpy()}


def _name_nodes(model: Any) -> None:
    """Give a name to each node that has none, because nodes are excluded by name."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def _before_first_layer(model: Any) -> List[str]:
    """Return the nodes that compute the normalized image."""
    reached: Set[str] = {INPUT}
    names = []
    for node in model.graph.node:  # in the order of their execution
        if node.op_type not in LAYERS and reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the notes of ONNX Runtime's quantizer, which go to Python's root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
