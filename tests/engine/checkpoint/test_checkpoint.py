import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from mdistiller.dataset.info import DatasetInfo
from mdistiller.distillers import DeployedStudent, head_dict
from mdistiller.engine import checkpoint as ck
from mdistiller.engine.checkpoint import numpy_scalars
from mdistiller.errors import UserError
from mdistiller.models import build_model

INFO = DatasetInfo("imagefolder", ("ant", "bee", "cat"), 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def deployed():
    head = head_dict["SFAKD"](in_channels=64, height=8, width=8, out_channels=20, num_classes=3)
    return DeployedStudent(build_model("resnet8", 3), head).eval()


def described(student):
    return ck.describe_student(
        student, "resnet8", INFO, {"deployed_top1": 50.0}, 4, {"DATASET": {"TYPE": "imagefolder"}}
    )


def test_a_student_comes_back_whole(tmp_path):
    student = deployed()
    ck.save(described(student), tmp_path / "s.pth")
    content = ck.read_checkpoint(tmp_path / "s.pth")
    loaded = ck.load_student(content, "resnet8", 3, tmp_path / "s.pth").eval()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(image), student(image), rtol=0, atol=0)
    assert content["classes"] == ["ant", "bee", "cat"]
    assert (content["mean"], content["input_size"], content["epoch"]) == ([0.1, 0.2, 0.3], 32, 4)


def test_the_key_model_alone_is_a_plain_checkpoint(tmp_path):
    student = deployed()
    ck.save(described(student), tmp_path / "s.pth")
    state = torch.load(tmp_path / "s.pth", weights_only=True)["model"]
    bare = build_model("resnet8", 3).eval()
    bare.load_state_dict(state)
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(bare(image)[0], student.backbone(image)[0])


@pytest.mark.parametrize("layout", ["model", "state_dict", "raw", "parallel", "legacy", "numpy"])
def test_foreign_layouts_load(tmp_path, layout):
    model = build_model("resnet8", 3).eval()
    state = model.state_dict()
    content = {
        "model": {"model": state, "epoch": 240},
        "state_dict": {"state_dict": state},
        "raw": state,
        "parallel": {"model": {f"module.{k}": v for k, v in state.items()}},
        "legacy": {"model": state},
        "numpy": {"model": state, "accuracy": np.float64(79.4), "best": np.float32(1), "best_acc": torch.tensor(79.4)},
    }[layout]
    torch.save(content, tmp_path / "t.pth", _use_new_zipfile_serialization=layout != "legacy")
    loaded = ck.load_student(ck.read_checkpoint(tmp_path / "t.pth"), "resnet8", 3, "t.pth").eval()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(image), model(image)[0])


def rewrite(path, change):
    """Apply `change` to the pickle of a checkpoint."""
    content = path.read_bytes()
    if not zipfile.is_zipfile(path):
        path.write_bytes(change(content))
        return
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ck.file, "MAX_PICKLE_BYTES", 10**6)
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps("0" * 10**7))
    assert path.stat().st_size < 10**5
    with pytest.raises(UserError, match=r"bomb.pth is damaged \(100000\d\d bytes of values, at most 1000000 are"):
        ck.read_checkpoint(path)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize("zipped", [True, False])
def test_scalars_of_numpy_1_and_2_load(tmp_path, module, zipped):
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    content = {kind.__name__: kind(1) for kind in kinds}
    torch.save({**content, "model": {"a": torch.ones(2)}}, tmp_path / "n.pth", _use_new_zipfile_serialization=zipped)
    rewrite(tmp_path / "n.pth", lambda pickled: re.sub(rb"numpy\._?core\.multiarray", module, pickled))
    loaded = ck.read_checkpoint(tmp_path / "n.pth")
    assert {name: loaded[name] for name in content} == content
    assert {name: type(loaded[name]) for name in content} == {name: type(value) for name, value in content.items()}


@pytest.mark.parametrize("name", [b"load", b"_reconstruct", b"frombuffer", b"scalar.__globals__"])
def test_nothing_else_of_numpy_is_called(tmp_path, name):
    torch.save({"accuracy": np.float64(1)}, tmp_path / "n.pth")
    rewrite(tmp_path / "n.pth", lambda pickled: pickled.replace(b"\nscalar\n", b"\n" + name + b"\n"))
    with pytest.raises(UserError, match=r"n\.pth refused"):
        ck.read_checkpoint(tmp_path / "n.pth")


def test_numpy_objects_are_refused(tmp_path):
    for value in (np.array([Hostile()]), np.array([1.0]), np.array("text")[()], np.datetime64("2020-01-01")):
        torch.save({"accuracy": value}, tmp_path / "n.pth")
        with pytest.raises(UserError, match=r"n\.pth refused"):
            ck.read_checkpoint(tmp_path / "n.pth")
    for dtype, data in ((np.dtype("O"), b"12345678"), (np.dtype("V8"), b"12345678"), ("f8", b"12345678")):
        with pytest.raises(pickle.UnpicklingError, match="Unsupported NumPy scalar"):
            numpy_scalars._scalar_of("numpy.core.multiarray")(dtype, data)
    assert not (tmp_path / "owned").exists()


def test_optimizer_state_is_read_along(tmp_path):
    model = build_model("resnet8", 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 240}, tmp_path / "o.pth")
    loaded = ck.load_student(ck.read_checkpoint(tmp_path / "o.pth"), "resnet8", 3, "o.pth")
    assert torch.equal(loaded.backbone.state_dict()["fc.weight"], model.state_dict()["fc.weight"])


def test_models_of_one_name_are_told_apart(tmp_path):
    large = build_model("ResNet18", 3, "imagenet")
    raw = large.state_dict()
    assert "fc.weight" in ck.load_student(raw, "ResNet18", 3, "raw.pth", "imagenet", 224).backbone.state_dict()
    with pytest.raises(UserError, match="raw.pth do not fit ResNet"):
        ck.load_student(raw, "ResNet18", 3, "raw.pth")
    info = DatasetInfo("imagefolder", ("ant", "bee", "cat"), 96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    told = ck.describe_student(DeployedStudent(large), "ResNet18", info, {"deployed_top1": 50.0}, 4, {"DATASET": {}})
    # a described one is what it was trained as, whatever it is evaluated on
    assert "fc.weight" in ck.load_student(told, "ResNet18", 3, "s.pth", "imagefolder", 32).backbone.state_dict()


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_not_executed(tmp_path, zipped):
    torch.save({"model": Hostile()}, tmp_path / "h.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="refused.*system"):
        ck.read_checkpoint(tmp_path / "h.pth")
    assert not (tmp_path / "owned").exists()


def test_a_plain_hostile_pickle_is_refused(tmp_path):
    (tmp_path / "h.pth").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="refused|not a PyTorch file"):
        ck.read_checkpoint(tmp_path / "h.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.9])
def test_a_truncated_file_is_named(tmp_path, keep):
    ck.save(described(deployed()), tmp_path / "s.pth")
    content = (tmp_path / "s.pth").read_bytes()
    (tmp_path / "s.pth").write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(UserError, match=r"s\.pth (is truncated|refused)"):
        ck.read_checkpoint(tmp_path / "s.pth")


def test_messages():
    with pytest.raises(UserError, match="no checkpoint at gone.pth; give the path"):
        ck.read_checkpoint("gone.pth")
    torch.save([1], "list.pth")
    with pytest.raises(UserError, match="holds a list; expected a dictionary"):
        ck.read_checkpoint("list.pth")
    torch.save({"epoch": 3}, "empty.pth")
    with pytest.raises(UserError, match=r"holds no model weights \(keys: epoch\)"):
        ck.load_student(ck.read_checkpoint("empty.pth"), "resnet8", 3, "empty.pth")
    with pytest.raises(UserError, match="holds a resnet8, not a resnet20; give -m resnet8"):
        ck.load_student(described(deployed()), "resnet20", 3, "s.pth")
    with pytest.raises(UserError, match="format version 99.*upgrade"):
        ck.is_described({"format": ck.FORMAT, "version": 99})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("mean", [0.5]),
        ("mean", ["a", "b", "c"]),
        ("std", [0.0, 0.1, 0.1]),
        ("std", [0.1, 0.1, float("nan")]),
        ("classes", ["a", "a", "b"]),
    ],
)
def test_a_description_with_impossible_values_is_damaged(part, value):
    with pytest.raises(UserError, match=rf"description is damaged \({part}\)"):
        ck.is_described({**described(deployed()), part: value})
    with pytest.raises(UserError, match="description is damaged"):
        content = described(deployed())
        ck.is_described({**content, "config": {**content["config"], "DISTILLER": "x"}})


@pytest.mark.parametrize("part", ["model", "classes", "config", "accuracy", "arch", "version"])
def test_a_damaged_description_is_named(part):
    content = described(deployed())
    del content[part]
    with pytest.raises(UserError, match=rf"description is damaged \({part}\)"):
        ck.is_described(content)


@pytest.mark.parametrize("damage", [{"options": {"width": 3}}, {"state": {}}, {"kind": None}])
def test_a_damaged_head_is_named(damage):
    content = described(deployed())
    content["head"] = {**content["head"], **damage}
    with pytest.raises(UserError, match="head"):
        ck.load_student(content, "resnet8", 3, "s.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    ck.save({"model": {"a": torch.zeros(1)}}, tmp_path / "s.pth")

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"cannot write to .*s\.pth \(No space left on device\); earlier files"):
        ck.save({"model": {"a": torch.ones(1)}}, tmp_path / "s.pth")
    assert torch.equal(ck.read_checkpoint(tmp_path / "s.pth")["model"]["a"], torch.zeros(1))
    assert [path.name for path in tmp_path.glob("s.*")] == ["s.pth"]


def test_ctrl_c_during_a_save_is_not_hidden(tmp_path, monkeypatch):
    """PyTorch's writer, closed in the middle of an entry, raises an error of its own."""

    def interrupted(content, file):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 24320 vs 24216")

    ck.save({"a": torch.zeros(2)}, tmp_path / "c.pth")
    before = (tmp_path / "c.pth").read_bytes()
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ck.save({"a": torch.ones(2)}, tmp_path / "c.pth")
    assert (tmp_path / "c.pth").read_bytes() == before


def test_tensors_are_saved_on_the_cpu(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self) or self + 1)
    state = torch.nn.BatchNorm1d(1).state_dict()
    ck.save({"model": state, "list": [(state["weight"], 2)], "name": "x"}, tmp_path / "x.pth")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert len(moved) == len(state) + 1
    assert float(content["model"]["weight"]) == float(content["list"][0][0]) == 2.0
    assert content["model"]._metadata == state._metadata and content["name"] == "x" and content["list"][0][1] == 2
    assert float(state["weight"]) == 1.0
