"""What users, networks and strangers give that is no student: one line, status 2, and nothing is written."""

import io
import os
import re
import sys
import zlib

import pytest
import torch
from PIL import Image

from mdistiller.models import build_model
from tests.export.conftest import build_student, describe
from tests.test_atomic_files import limited_files


@pytest.fixture(scope="module")
def place(session_folder, tmp_path_factory):
    """A folder with one file for each kind of fault; nothing may be written to it."""
    folder = tmp_path_factory.mktemp("bad")
    content = describe(build_student("SFAKD"), session_folder / "images")
    good = folder / "good.pth"
    torch.save(content, good)
    torch.save({"model": build_model("resnet8", 3).state_dict()}, folder / "teacher.pth")
    torch.save({**content, "distiller": {}, "optimizer": {}}, folder / "latest.pth")
    torch.save({key: value for key, value in content.items() if key != "mean"}, folder / "undescribed.pth")
    torch.save({**content, "version": 99}, folder / "future.pth")
    torch.save({**content, "arch": "resnet9"}, folder / "unknown_model.pth")
    torch.save({**content, "head": {**content["head"], "kind": "MINE"}}, folder / "unknown_head.pth")
    options = {**content["head"]["options"], "height": 3}
    torch.save({**content, "head": {**content["head"], "options": options}}, folder / "damaged_head.pth")
    torch.save({**content, "classes": ["a", "b"]}, folder / "two_classes.pth")
    torch.save(describe(build_student("SFAKD"), "gone_folder"), folder / "no_data.pth")
    torch.save({**content, "arch": "timm/resnet10t"}, folder / "timm.pth")
    torch.save({**content, "input_size": 10**6}, folder / "large.pth")
    (folder / "truncated.pth").write_bytes(good.read_bytes()[:5000])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.onnx").write_text("not a model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.pt2").write_text("not a program")
    (folder / "student.tflite").write_bytes(b"TFL3")
    (folder / "run").mkdir()
    (folder / "safe.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{" + b'"a":' * 20)
    (folder / "huge.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    (folder / "code.pth").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "text.png").write_bytes(b"no picture")
    (pictures / "empty.jpg").write_bytes(b"")
    whole = io.BytesIO()
    Image.new("RGB", (64, 64)).save(whole, "PNG")
    (pictures / "cut.png").write_bytes(whole.getvalue()[:60])
    bomb = bytearray(whole.getvalue())
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (pictures / "bomb.png").write_bytes(bomb)
    return folder


PREDICTIONS = [
    ("gone.onnx", "no student at .*gone.onnx; give a checkpoint, a run folder, or an export"),
    ("teacher.pth", "teacher.pth holds weights alone, as the released teachers do; expected a student that describes"),
    ("run", "the folder .*run holds no student .student_best.pth or student_latest.pth.; give the folder"),
    ("latest.pth", "latest.pth is a training state for --resume; give student_latest.pth"),
    ("large.pth", "the checkpoint's description is damaged .input_size.; get the file again"),
    ("undescribed.pth", "the checkpoint's description is damaged .mean.; get the file again"),
    ("future.pth", "the checkpoint has format version 99; this mdistiller reads up to 1"),
    ("unknown_model.pth", "the checkpoint's model 'resnet9' is not known here|unknown CIFAR model 'resnet9'"),
    ("unknown_head.pth", "needs the head 'MINE', which no distiller here has"),
    ("damaged_head.pth", "the head in checkpoint .* is damaged"),
    ("truncated.pth", "truncated.pth is (truncated|damaged)"),
    ("empty.pth", "empty.pth is truncated or not a PyTorch file"),
    ("code.pth", "code.pth (refused|is truncated)"),
    ("text.onnx", "text.onnx is damaged or not an ONNX file"),
    ("empty.onnx", "empty.onnx is damaged or not an ONNX file"),
    ("text.pt2", "text.pt2 is damaged or not a .pt2 file"),
    ("pictures/text.png", "text.png has the unknown format '.png'; expected .pth, .onnx, .pt2 or"),
    ("student.tflite", "student.tflite has the unknown format '.tflite'; expected .pth, .onnx, .pt2 or"),
    ("safe.safetensors", "safe.safetensors is a damaged safetensors file|safe.safetensors is truncated"),
    ("huge.safetensors", "huge.safetensors (refused|is truncated or not a PyTorch file)"),
]


@pytest.mark.parametrize(("name", "message"), PREDICTIONS)
def test_no_student(command, place, session_folder, name, message):
    if name.endswith("onnx") and name != "gone.onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    before = sorted(place.rglob("*"))
    status, out, err = command("predict", "-c", place / name, session_folder / "images" / "val")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("error: ")
    assert re.search(message, err), err
    assert sorted(place.rglob("*")) == before and not os.path.exists("hacked")


@pytest.mark.parametrize("option", ["-m", "--plugin"])
@pytest.mark.parametrize("name", ["text.onnx", "text.pt2"])
def test_code_that_a_file_does_not_need(command, place, name, option):
    status, _, err = command("predict", "-c", place / name, option, "mine.py", place / "pictures" / "text.png")
    assert (status, len(err.splitlines())) == (2, 1), err
    assert f"{name} holds its whole network, so no code is needed; leave out -m and --plugin" in err


@pytest.mark.parametrize("name", ["text.png", "empty.jpg", "cut.png", "bomb.png", "gone.png", "."])
def test_no_picture(command, place, name):
    status, out, err = command("predict", "-c", place / "good.pth", place / "pictures" / name)
    assert (status, out) == (2, ""), err
    lines = err.splitlines()
    assert len(lines) == (4 if name == "." else 1)
    assert all(line.startswith("error: cannot read the image ") or "gone.png" in line for line in lines), err


@pytest.mark.parametrize(("number", "message"), [("0", "--top is 0; expected at least 1"), ("x", "invalid int value")])
def test_no_number_of_classes(command, place, session_folder, number, message):
    status, _, err = command("predict", "-c", place / "good.pth", "-k", number, session_folder / "images" / "val")
    assert status == 2 and message in err and len(err.splitlines()) == 1


EXPORTS = [
    ("teacher.pth", (), "holds weights alone"),
    ("run", (), "holds no student"),
    ("two_classes.pth", (), "do not fit|2 classes|holds a model of 3 classes|classes"),
    ("no_data.pth", (), "the proof needs the validation images: .*--no-data proves on random images"),
    ("good", ("--format", "tflite"), "invalid choice: 'tflite'"),
    ("good", ("--max-drop", "1"), "--max-drop needs --half or --int8; a float32 export loses nothing"),
    ("good", ("--format", "torch", "--int8"), "--int8 is for --format onnx, given torch"),
    ("good", ("--half", "--int8"), "not allowed with argument"),
    ("good", ("--int8", "--no-data"), "--int8 is calibrated on training images"),
    *(
        ("good", ("--half", "--max-drop", given), f"--max-drop is {given}; expected percentage points from 0 to 100")
        for given in ("-1", "101", "nan")
    ),
    ("good", ("--max-drop", "half"), "invalid float value: 'half'"),
    ("gone.pth", (), "no checkpoint at .*gone.pth; give the path"),
    ("text.onnx", (), "text.onnx is an export for another runtime; give its checkpoint"),
    ("good", ("-m", "vgg8", "--format", "safetensors"), "holds a resnet8, not a vgg8"),
    (
        "good",
        ("--format", "safetensors", "--push", "a/b/c"),
        "--push 'a/b/c' is not the name of a repository .*; give USER/NAME",
    ),
    ("good", ("--format", "safetensors", "SOLVER.LR"), "SOLVER.LR"),
    ("good", ("--format", "safetensors", "DATASET.ROOT", "gone"), "the proof needs the validation images: .*gone"),
    (
        "good",
        ("--format", "safetensors", "--output", "x.onnx"),
        "--output x.onnx ends in .onnx; this --format writes .safetensors",
    ),
    ("good", ("--format", "safetensors", "--output", "/dev/null/x"), "cannot write to /dev/null/x/student.safetensors"),
    ("good", ("--private",), "--private needs --push"),
    ("good", ("-d", "cifar", "--format", "safetensors"), "unknown data set 'cifar'"),
    ("good", ("--format", "safetensors", "SOLVER.LRR", "1"), "unknown config key SOLVER.LRR"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), EXPORTS)
def test_no_export(command, place, student_file, name, arguments, message):
    path = student_file if name == "good" else place / name
    if "safetensors" not in arguments:
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    if "--push" in arguments:
        pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
    status, _, err = command("export", "-c", path, *arguments)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert re.search(message, err), err
    assert not (student_file.parent / "export").exists() and not os.path.lexists("x.onnx")


@pytest.mark.parametrize(
    ("library", "arguments", "message"),
    [
        ("onnx", ("export", "-c", "good.pth"), "ONNX files need onnx and onnxruntime .*; run: pip install onnx onnx"),
        ("onnxruntime", ("predict", "-c", "text.onnx", "."), "ONNX files need .*; run: pip install onnx"),
        ("timm", ("export", "-c", "timm.pth", "--format", "safetensors"), "of timm needs timm; run: pip install"),
        ("huggingface_hub", ("export", "-c", "good.pth", "--push", "me/it"), "huggingface_hub; run: pip install hug"),
    ],
)
def test_a_missing_library_is_named(monkeypatch, command, place, library, arguments, message):
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    before = sorted(place.rglob("*"))
    status, out, err = command(*(place / part if (place / part).is_file() else part for part in arguments))
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(message, err), err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_a_full_disk_leaves_nothing_behind(command, student_file, form, request):
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
        request.getfixturevalue("old_exporter")
    with limited_files(20_000):
        status, _, err = command("export", "-c", student_file, "--format", form, "--no-data")
    assert status == 2 and len(err.splitlines()) == 1
    assert "cannot write to" in err and "free some space" in err
    assert [path.name for path in student_file.parent.iterdir()] == ["student_best.pth"]
