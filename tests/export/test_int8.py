"""Quantization to 8 bits: its steps, the layers that stay in float, and the limit of what may be lost."""

import json
import re

import pytest
import torch

from mdistiller.export.export import export_student
from mdistiller.export.options import Options
from tests.export.test_export import files_below, load

PLAIN = "tests.export.networks:Plain"
needs_onnx = pytest.mark.usefixtures("onnx_libraries", "old_exporter")


@needs_onnx
def test_int8_is_measured_step_by_step(command, student_file):
    status, out, err = command("export", "-c", student_file, "--int8", "--max-drop", "100")
    assert (status, err) == (0, "")
    (step,) = re.findall(r"int8      (\d+) of (\d+) layers in int8, none in float: top-1 ", out)
    assert step[0] == step[1]
    folder = student_file.parent / "export" / "onnx-int8"
    assert files_below(folder) == ["card.md", "student.onnx"]
    model, metadata = load(folder / "student.onnx")
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == 3 and len(tensor.dims) == 4]
    assert len(weights) >= 9, "convolutions with int8 weights"
    assert "onnxruntime.quantization" in json.loads(metadata["mdistiller"])["made_by"]
    assert "Steps of the quantization" in (folder / "card.md").read_text(encoding="utf-8")


@needs_onnx
def test_int8_leaves_the_layers_in_float_that_cost_most(monkeypatch, make_student):
    from mdistiller.export.formats import int8
    from mdistiller.export.proof import Proof

    path = make_student(None, PLAIN)
    content = torch.load(path, weights_only=True)
    with torch.no_grad():  # one channel dwarfs the others, and the next layer undoes it
        content["model"]["blocks.0.1.weight"][0] *= 3000
        content["model"]["blocks.0.1.bias"][0] *= 3000
        content["model"]["blocks.1.0.weight"][:, 0] /= 3000
    torch.save(content, path)
    fault, seen = Proof.fault, []

    def until_two_are_in_float(proof, exact, max_drop):
        if exact:
            return fault(proof, exact, max_drop)
        seen.append(proof)
        return "too much" if len(seen) < 3 else ""

    monkeypatch.setattr(Proof, "fault", until_two_are_in_float)
    rankings = []
    by_sensitivity = int8.by_sensitivity

    def record(*given):
        rankings.append(by_sensitivity(*given))
        return rankings[-1]

    monkeypatch.setattr(int8, "by_sensitivity", record)
    result = export_student(path, Options(int8=True, model=PLAIN))
    number = len(rankings[0])
    assert [step.split(":")[0] for step in result.steps] == [
        f"{number} of {number} layers in int8, none in float",
        f"{number - 1} of {number} layers in int8, {rankings[0][0]} in float",
        f"{number - 2} of {number} layers in int8, {rankings[0][0]}, {rankings[0][1]} in float",
    ]
    errors = [proof.difference for proof in seen]
    assert len(rankings) == 1 and errors[2] < errors[0] / 2
    layers = [node for node in load(result.path)[0].graph.node if node.op_type in ("Conv", "Gemm")]
    in_float = [node.name for node in layers if not node.input[1].endswith("DequantizeLinear_Output")]
    assert sorted(in_float) == sorted(rankings[0][:2]) == sorted(node.name for node in layers[:2])


@needs_onnx
def test_int8_that_loses_too_much_is_refused(monkeypatch, command, make_student):
    from mdistiller.export.proof import Proof

    fault = Proof.fault
    monkeypatch.setattr(Proof, "fault", lambda proof, exact, max_drop: fault(proof, exact, 0) if exact else "lost")
    path = make_student(None, PLAIN)
    status, _, err = command("export", "-c", path, "-m", PLAIN, "--int8")
    assert status == 2 and re.match(r"error: int8 loses .* points of top-1 even with \d+ of \d+ layers in float;", err)
    assert [file.name for file in path.parent.iterdir()] == ["student_best.pth"]
