"""Exports from strangers: one line, status 2, and nothing in them is run."""

import io
import json
import os
import re
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mdistiller.export.formats.pt2_check import SIZE


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


def fixed_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


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
    (fixed_batch, "cannot run .*for 2 images and 3 classes"),
    (set_metadata("classes", '{"a": 1}'), "the metadata of .* is damaged .the classes are not names."),
]


@pytest.mark.usefixtures("onnx_libraries")
@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_hostile_onnx(command, exported, session_folder, tmp_path, change, message):
    import onnx

    model = onnx.load(str(exported().path))
    change(model)
    (tmp_path / "hostile.onnx").write_bytes(model.SerializeToString())
    status, out, err = command("predict", "-c", "hostile.onnx", session_folder / "images" / "val")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(message, err), err


# --- hostile safetensors files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "[" * 100_000, "the metadata of checkpoint .* are damaged"),
        (lambda text: text.replace('"in_channels": 64', '"in_channels": "64"'), "the head in checkpoint .* is damaged"),
        (lambda text: text.replace('"input_size": 16', '"input_size": 1000000'), "description is damaged .input_size"),
    ],
)
def test_hostile_safetensors(command, exported, session_folder, tmp_path, change, message):
    with safe_open(exported(format="safetensors").path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    changed = change(metadata["mdistiller.student"])
    assert changed != metadata["mdistiller.student"]
    save_file(tensors, tmp_path / "hostile.safetensors", {**metadata, "mdistiller.student": changed})
    status, out, err = command("predict", "-c", "hostile.safetensors", session_folder / "images" / "val")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(message, err), err


# --- hostile .pt2 files


@pytest.fixture
def program(exported, tmp_path):
    path = tmp_path / "student.pt2"
    path.write_bytes(exported(format="torch").path.read_bytes())
    return path


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def compressed(name, data):  # see `rewrite`
    return data


def rewrite(path, change, extra=()):
    content, kind = path.read_bytes(), zipfile.ZIP_DEFLATED if change is compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", kind) as new:
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
        (evil_pickle, (), "loading .* could run arbitrary code .*[.]pt: "),
        (evil_operator, (), "the operator 'torch.os.system'"),
        (evil_size, (), "the size expression 'exec"),
        (lambda name, data: data, [("{}/data/aotinductor/model/a.so", b"x")], "the entry .*a.so"),
        (compressed, (), "is compressed"),
    ],
)
def test_hostile_programs(command, program, session_folder, change, extra, message):
    rewrite(program, change, extra)
    status, out, err = command("predict", "-c", program, session_folder / "images" / "val")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(message, err), err
    assert not os.path.exists("hacked")


def test_a_long_size_is_checked_at_once():
    assert not SIZE.fullmatch("1" * 5000 + "!")
    assert SIZE.fullmatch("Max(1, s0 + 16*FloorDiv(s12, 2))")
