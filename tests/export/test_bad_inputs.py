"""What users, networks and strangers give that is no student: one line, status 2, and nothing is written."""

import io
import json
import os
import re
import zipfile

import pytest
import torch

from mdistiller.export.export import Options, export_student
from mdistiller.models import build_model
from tests.export.conftest import build_student, describe
from tests.test_atomic_files import limited_files


@pytest.fixture
def place(tmp_path, student_file):
    """A folder with one file for each kind of fault."""
    folder = tmp_path / "bad"
    folder.mkdir()
    content = torch.load(student_file, weights_only=True)
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
    (folder / "truncated.pth").write_bytes(student_file.read_bytes()[:5000])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.onnx").write_text("not a model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.pt2").write_text("not a program")
    (folder / "student.tflite").write_bytes(b"TFL3")
    (folder / "run").mkdir()
    (folder / "safe.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{" + b'"a":' * 20)
    (folder / "huge.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    (folder / "code.pth").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    (folder / "picture.png").write_bytes(b"no picture")
    return folder


def hostile_safetensors(folder, student_file):
    from safetensors.torch import save_file

    result = export_student(student_file, Options(format="safetensors"))
    from safetensors import safe_open

    with safe_open(result.path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, folder / "deep.safetensors", {**metadata, "mdistiller.student": "[" * 100_000})
    rest = json.loads(metadata["mdistiller.student"])
    rest["head"]["options"]["in_channels"] = "64"
    save_file(tensors, folder / "options.safetensors", {**metadata, "mdistiller.student": json.dumps(rest)})


PREDICTIONS = [
    ("gone.onnx", "no student at .*gone.onnx; give a checkpoint, a run folder, or an export"),
    ("teacher.pth", "teacher.pth holds weights alone, as the released teachers do; expected a student that describes"),
    ("run", "the folder .*run holds no student .student_best.pth or student_latest.pth.; give the folder"),
    ("latest.pth", "latest.pth is a training state, to resume from; give the student_latest.pth"),
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
    ("student.tflite", "student.tflite has the unknown format '.tflite'; expected .pth, .onnx, .pt2 or"),
    ("safe.safetensors", "safe.safetensors is a damaged safetensors file|safe.safetensors is truncated"),
    ("huge.safetensors", "huge.safetensors (refused|is truncated or not a PyTorch file)"),
]


@pytest.mark.parametrize(("name", "message"), PREDICTIONS)
def test_no_student(command, place, image_folder, name, message):
    if name.endswith("onnx") and name != "gone.onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    before = sorted(place.rglob("*"))
    status, out, err = command("predict", "-c", place / name, image_folder / "val")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("error: ")
    assert re.search(message, err), err
    assert sorted(place.rglob("*")) == before and not os.path.exists("hacked")


def test_hostile_safetensors(command, place, student_file, image_folder):
    hostile_safetensors(place, student_file)
    for name, message in (("deep", "the metadata of checkpoint"), ("options", "the head in checkpoint")):
        status, _, err = command("predict", "-c", place / f"{name}.safetensors", image_folder / "val")
        assert status == 2 and len(err.splitlines()) == 1 and message in err


def test_no_picture(command, place, student_file):
    status, out, err = command("predict", "-c", student_file, place / "picture.png")
    assert (status, out) == (2, "") and "cannot read the image" in err and len(err.splitlines()) == 1
    status, _, err = command("predict", "-c", student_file, "-k", "0", place / "picture.png")
    assert status == 2 and "--top is 0; expected at least 1" in err


EXPORTS = [
    ("teacher.pth", (), "holds weights alone"),
    ("run", (), "holds no student"),
    ("two_classes.pth", (), "do not fit|2 classes|holds a model of 3 classes|classes"),
    ("no_data.pth", (), "the proof needs the validation images: .*--no-data proves on random images"),
    ("good", ("--format", "tflite"), "invalid choice: 'tflite'"),
    ("good", ("--format", "torch", "--int8"), "--int8 is for --format onnx, given torch"),
    ("good", ("--half", "--int8"), "not allowed with argument"),
    ("good", ("--int8", "--no-data"), "--int8 is calibrated on training images"),
    ("good", ("--max-drop", "-1"), "--max-drop is -1; expected percentage points from 0 to 100"),
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
    if not arguments or "--int8" in arguments or "--max-drop" in arguments:
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    status, _, err = command("export", "-c", path, *arguments)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert re.search(message, err), err
    assert not (student_file.parent / "export").exists() and not os.path.lexists("x.onnx")


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


# --- hostile ONNX files


@pytest.fixture
def onnx_export(student_file, old_exporter):
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    return export_student(student_file, Options()).path


def outside(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", "100")):
        tensor.external_data.add(key=key, value=value)


def outside_in_a_constant(model):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Constant", [], ["secret"], value=onnx.helper.make_tensor("t", 1, [1], [0.0]))
    node.attribute[0].t.data_location = 1
    node.attribute[0].t.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.insert(0, node)


def foreign_operator(model):
    model.graph.node[0].domain = "evil"
    model.opset_import.add(domain="evil", version=1)


def other_input(model):
    model.graph.input[0].name = "x"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = "x"


def set_metadata(key, value):
    def change(model):
        for entry in list(model.metadata_props):
            if entry.key == key:
                model.metadata_props.remove(entry)
        if value is not None:
            model.metadata_props.add(key=key, value=value)

    return change


HOSTILE = [
    (outside, "reads its weights from other files, which is not safe"),
    (outside_in_a_constant, "reads its weights from other files, which is not safe"),
    (foreign_operator, "ONNX Runtime cannot load"),
    (other_input, r"has the inputs \['x'\] and outputs \['logits'\]; expected"),
    (set_metadata("mdistiller", None), "has no metadata 'classes' and 'mdistiller'; expected an export"),
    (set_metadata("mdistiller", "[" * 100_000), "the metadata of .* is damaged"),
    (set_metadata("classes", '["a"]'), "cannot run .logits of the shape .2, 3. for 2 images and 1 classes."),
    (set_metadata("classes", '{"a": 1}'), "the metadata of .* is damaged .the classes are not names."),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_hostile_onnx(command, onnx_export, image_folder, change, message):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(onnx_export))
    change(model)
    onnx_export.write_bytes(model.SerializeToString())
    status, out, err = command("predict", "-c", onnx_export, image_folder / "val")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(message, err), err


# --- hostile .pt2 files


@pytest.fixture(scope="module")
def program_bytes(tmp_path_factory):
    """An export by torch.export, made once, because tracing takes seconds."""
    folder = tmp_path_factory.mktemp("program")
    torch.save(describe(build_student("SFAKD"), "nowhere"), folder / "student.pth")
    return export_student(folder / "student.pth", Options(format="torch", use_data=False)).path.read_bytes()


@pytest.fixture
def program(program_bytes, tmp_path):
    path = tmp_path / "student.pt2"
    path.write_bytes(program_bytes)
    return path


def test_an_unchanged_program_is_accepted(command, program, image_folder):
    status, out, err = command("predict", "-c", program, image_folder / "val")
    assert (status, err, len(out.splitlines())) == (0, "", 18)


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def rewrite(path, change, extra=()):
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, data in extra:
            new.writestr(name.format(old.namelist()[0].split("/")[0]), data)


def evil_pickle(name, data):
    if not name.endswith(".pt"):
        return data
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    return buffer.getvalue()


def evil_operator(name, data):
    return data.replace(b"torch.ops.aten.relu.default", b"torch.os.system").replace(
        b"torch.ops.aten.relu_.default", b"torch.os.system"
    )


def evil_size(name, data):
    if not name.endswith(("exported_program.json", "models/model.json")):
        return data
    content = json.loads(data)

    def walk(value):
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(item)
        if isinstance(value, dict) and "expr_str" in value:
            value["expr_str"] = "exec(chr(112)+chr(97))"

    walk(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (evil_pickle, (), "refused, because loading it could run any code .*[.]pt: "),
        (evil_operator, (), "the operator 'torch.os.system'"),
        (evil_size, (), "the size 'exec"),
        (lambda name, data: data, [("{}/data/aotinductor/model/a.so", b"x")], "the entry .*a.so"),
    ],
)
def test_hostile_programs(command, program, image_folder, change, extra, message):
    rewrite(program, change, extra)
    status, out, err = command("predict", "-c", program, image_folder / "val")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(message, err), err
    assert not os.path.exists("hacked")
