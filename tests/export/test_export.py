"""tools/export.py: what it writes, proves and refuses."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

from mdistiller.engine.checkpoint import read_checkpoint
from mdistiller.export import export as exports
from mdistiller.export.export import export_student
from mdistiller.export.formats import onnx_file
from mdistiller.export.formats.tracing import ExporterFailed
from mdistiller.export.opening import open_runner
from mdistiller.export.options import Options
from tests.export.conftest import CLASSES

needs_onnx = pytest.mark.usefixtures("onnx_libraries", "old_exporter")


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def load(path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(path))
    return model, {entry.key: entry.value for entry in model.metadata_props}


@needs_onnx
def test_an_onnx_file_has_the_promised_interface(command, student_file):
    import onnxruntime

    status, out, err = command("export", "-c", student_file)
    folder = student_file.parent / "export" / "onnx"
    assert (status, err) == (0, "") and files_below(folder) == ["card.md", "student.onnx"]
    model, metadata = load(folder / "student.onnx")
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert metadata["card"].startswith("# resnet8 for imagefolder")
    about = json.loads(metadata["mdistiller"])
    assert about["made_by"].startswith("torch.onnx.export(dynamo=False)") and about["precision"] == "float32"
    kinds = {node.op_type for node in model.graph.node}
    assert "Conv" in kinds and not [
        kind for kind in kinds if "DFT" in kind or "FFT" in kind or kind == "BatchNormalization"
    ]
    session = onnxruntime.InferenceSession(str(folder / "student.onnx"), providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [3, 16, 16])
    assert logits.name == "logits" and isinstance(image.shape[0], str)
    for number in (1, 3, 64):
        found = session.run(None, {"image": np.zeros((number, 3, 16, 16), np.float32)})[0]
        assert found.shape == (number, 3) and found.dtype == np.float32
    assert re.search(r"18 validation images of imagefolder, run in ONNX Runtime .*\n.*agreement 100.00 %, 0 top-1", out)


@pytest.mark.parametrize(
    ("form", "head"),
    [*((form, head) for form in ("onnx", "safetensors") for head in (None, "SFAKD", "SIMKD")), ("torch", "SFAKD")],
)
def test_each_head_in_each_format(exported, form, head, request):
    if form == "onnx":
        request.getfixturevalue("onnx_libraries")
    result = exported(head, format=form)
    assert (result.proof.changed, result.proof.agreement) == (0, 100.0)
    assert result.proof.size == result.path.stat().st_size
    assert result.proof.latency[1] > 0 and result.proof.latency[64] > 0
    if form == "torch":
        assert "a fresh process" in result.proof.runtime
    card = result.card.read_text(encoding="utf-8")
    assert "## Deployment proof" in card and ("the teacher's classifier" in card) == (head is not None)
    assert str(result.path.parent) not in card, "a folder of this machine"
    line = f"| {result.proof.top1:.2f} | +0.00 | 100.00 % | 0 | 0 | {result.proof.difference:.2g} |"
    assert line in card and f"{result.proof.size:,} bytes" in card
    assert re.search(r"batch 1: [\d.]+ ms, batch 64: [\d.]+ ms", card)


@pytest.mark.usefixtures("onnx_libraries")
def test_the_new_exporter_is_the_first_choice(student_file):
    if not onnx_file.has_new_exporter():
        pytest.skip("this PyTorch has no exporter built on torch.export, or onnxscript is missing")
    result = export_student(student_file, Options())
    assert result.made_by.startswith("torch.onnx.export(dynamo=True)") and not result.notes
    assert b"site-packages" not in result.path.read_bytes(), "folders of this machine"


@needs_onnx
@pytest.mark.parametrize("how", ["wrong", "fails"])
def test_the_old_exporter_makes_the_file_where_the_new_one_does_not(monkeypatch, command, student_file, how):
    program = exports.onnx_program

    def new_exporter(model, image, dynamo):
        if dynamo and how == "fails":
            raise ExporterFailed("no such operator")
        if dynamo:
            model.shift += 0.5
        made = program(model, image, False)
        if dynamo:
            model.shift -= 0.5
        return made

    monkeypatch.setattr(exports, "has_new_exporter", lambda: True)
    monkeypatch.setattr(exports, "onnx_program", new_exporter)
    status, out, _ = command("export", "-c", student_file)
    assert status == 0
    reason = (
        "no such operator" if how == "fails" else r"(the top-1 class of \d+ images changed|logits differ by up to .*)"
    )
    assert re.search(rf"note      torch.onnx.export\(dynamo=True\) failed: {reason}\n", out)
    metadata = load(student_file.parent / "export" / "onnx" / "student.onnx")[1]
    assert json.loads(metadata["mdistiller"])["made_by"].startswith("torch.onnx.export(dynamo=False)")


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_an_export_that_is_not_equal_leaves_nothing_behind(monkeypatch, command, student_file, form, request):
    if form == "onnx":
        request.getfixturevalue("onnx_libraries")
        request.getfixturevalue("old_exporter")
    if form == "safetensors":
        write = exports.write_safetensors
        monkeypatch.setattr(exports, "write_safetensors", lambda *given: write(*given[:3], half=True))
        monkeypatch.setattr("mdistiller.export.proof.MAX_DIFFERENCE", 1e-7)
    else:
        form_of = exports.inference_form
        monkeypatch.setattr(
            exports,
            "inference_form",
            lambda student, size, mean, std, half: form_of(student, size, [1 - value for value in mean], std, half),
        )
    status, _, err = command("export", "-c", student_file, "--format", form)
    assert status == 2 and len(err.splitlines()) == 1
    assert re.search("so nothing was written .*(logits differ by up to|the top-1 class of)", err), err
    assert [path.name for path in student_file.parent.iterdir()] == ["student_best.pth"]


@needs_onnx
def test_half_is_smaller_and_says_what_it_changes(exported):
    exact, half = exported(), exported(half=True, max_drop=100)
    assert half.proof.size < 0.6 * exact.proof.size and half.path.parent.name == "onnx-float16"
    assert half.proof.difference > 1e-6
    assert open_runner(half.path).classes == CLASSES


def test_half_in_the_other_formats(exported):
    from safetensors import safe_open

    result = exported(format="safetensors", half=True, max_drop=100)
    with safe_open(result.path, "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds == {torch.float16, torch.int64}
    assert 0 < result.proof.difference < 0.05 * result.proof.scale


def test_an_exported_safetensors_file_is_a_checkpoint(command, student_file):
    result = export_student(student_file, Options(format="safetensors"))
    root = read_checkpoint(student_file)["config"]["DATASET"]["ROOT"]
    status, out, _ = command("eval", "-m", "resnet8", "-c", result.path, "DATASET.ROOT", root)
    assert status == 0 and "recorded  top-1 41.50" in out and "SFAKD head" in out
    status, other, _ = command("eval", "-m", "resnet8", "-c", student_file)
    assert re.findall("deployed .*", out) == re.findall("deployed .*", other)
    assert os.path.isabs(root) and root.encode() not in result.path.read_bytes(), "a folder of this machine"


def test_an_earlier_export_is_replaced_only_on_request(command, student_file, tmp_path):
    target = tmp_path / "out" / "mine.safetensors"
    arguments = ("export", "-c", student_file, "--format", "safetensors", "--output", target)
    assert command(*arguments)[0] == 0
    before = read_checkpoint(target)
    target.unlink()  # not overwritten: the tensors are mapped from it
    target.write_bytes(b"mine")
    status, _, err = command(*arguments)
    assert status == 2 and "mine.safetensors exists; give --overwrite" in err and target.read_bytes() == b"mine"
    assert command(*arguments, "--overwrite")[0] == 0
    after = read_checkpoint(target)
    assert after["classes"] == before["classes"]
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())
    assert files_below(tmp_path / "out") == ["card.md", "mine.safetensors"]


def test_without_data_the_remedy_is_named_and_random_images_prove(command, student_file, image_folder):
    shutil.rmtree(image_folder)
    status, _, err = command("export", "-c", student_file, "--format", "safetensors")
    assert status == 2 and len(err.splitlines()) == 1
    assert "the proof needs the validation images" in err and "--no-data proves on random images" in err
    status, out, _ = command("export", "-c", student_file, "--format", "safetensors", "--no-data")
    assert status == 0 and "512 images of random pixels, without data" in out
    card = (student_file.parent / "export" / "safetensors" / "card.md").read_text(encoding="utf-8")
    assert "512 images of random pixels, without data" in card and "| – | – | 100.00 % |" in card


def test_data_in_another_place_are_named(command, student_file, image_folder, tmp_path):
    image_folder.rename(tmp_path / "moved")
    place = ("DATASET.ROOT", tmp_path / "moved")
    status, out, _ = command("export", "-c", student_file, "--format", "safetensors", *place)
    assert status == 0 and "18 validation images" in out


def test_the_card_has_what_a_reader_needs(student_file):
    result = export_student(student_file, Options(format="safetensors", teacher_license="CC BY 4.0"))
    card = result.card.read_text(encoding="utf-8")
    for part in (
        "class_0, class_1, class_2",
        "`imagefolder`, 3 classes",
        "resnet14. License of its weights: CC BY 4.0.",
        "top-1 41.50 %, top-5 100.00 % (epoch 4",
        "tools/eval.py -m resnet8 -c student_best.pth",
        "multiply-accumulate operations",
        "## Intended use",
    ):
        assert part in card, part
    assert str(student_file.parent) not in card
