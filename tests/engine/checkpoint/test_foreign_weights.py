"""Weights in the files of other training programs: found, unwrapped, or refused in one line."""

from __future__ import annotations

import argparse
import logging
import pathlib
import re
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from mdistiller.engine import checkpoint as ck
from mdistiller.engine.checkpoint.foreign_weights import PATH_MODULES, PATHS, load_checkpoint, weights_of
from mdistiller.errors import UserError
from mdistiller.models import build_model


@pytest.fixture(scope="module")
def trained():
    """Two models of one kind, and one of another."""
    torch.manual_seed(0)
    return build_model("resnet8", 3), build_model("resnet8", 3), build_model("resnet14", 3)


def prefixed(prefix, model):
    return {prefix + key: value for key, value in model.state_dict().items()}


def loaded(content, path="w.pth"):
    """Write a file, load it into a fresh model, and return that model's state."""
    torch.save(content, path)
    model = build_model("resnet8", 3)
    load_checkpoint(model, ck.read_checkpoint(path), path)
    return model.state_dict()


def same(state, model):
    return all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.module."]
)
@pytest.mark.parametrize(
    "keys", [(), ("model",), ("state_dict",), ("model_state_dict",), ("net",), ("network",), ("model", "state_dict")]
)
def test_keys_and_prefixes_in_any_order(trained, keys, prefix, caplog):
    content = prefixed(prefix, trained[0])
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    with caplog.at_level(logging.INFO, "mdistiller"):
        assert same(loaded(content), trained[0])
    assert not caplog.messages


def arguments(**more):
    return argparse.Namespace(
        model="resnet8", lr=0.1, opt_betas=None, tags=("a", "b"), device=torch.device("cpu"), steps=[1, 2], **more
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_training_files_of_timm_and_torchvision(trained, zipped, caplog):
    raw, average, _ = trained
    optimizer = torch.optim.SGD(raw.parameters(), 0.1).state_dict()
    ema = AveragedModel(average).state_dict()
    assert "n_averaged" in ema
    timm = {
        "epoch": 3,
        "arch": "resnet8",
        "state_dict": raw.state_dict(),
        "optimizer": optimizer,
        "version": 2,
        "args": arguments(data_dir=pathlib.Path("/data/images")),
        "state_dict_ema": average.state_dict(),
        "metric": 71.2,
    }
    torchvision = {
        "model": raw.state_dict(),
        "optimizer": optimizer,
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": arguments(nested=argparse.Namespace(x=1)),
        "model_ema": ema,
        "scaler": {},
    }
    for content, names in ((timm, ("state_dict_ema", "state_dict")), (torchvision, ("model_ema", "model"))):
        torch.save(content, "t.pth", _use_new_zipfile_serialization=zipped)
        model = build_model("resnet8", 3)
        caplog.clear()
        with caplog.at_level(logging.INFO, "mdistiller"):
            load_checkpoint(model, ck.read_checkpoint("t.pth"), "t.pth")
        assert same(model.state_dict(), average)
        assert caplog.messages == [
            f"note: t.pth has weights below {names[0]!r} and {names[1]!r}; {names[0]!r}, the average, is used"
        ]
        del content[names[0]]
        assert same(loaded(content), raw)


def test_arguments_come_back_as_data():
    torch.save({"args": arguments(out=pathlib.Path("/runs/first"), home=pathlib.Path("."))}, "a.pth")
    args = ck.read_checkpoint("a.pth")["args"]
    assert args == arguments(out="/runs/first", home=".")


@pytest.mark.parametrize("module", PATH_MODULES)
@pytest.mark.parametrize("name", PATHS)
def test_paths_of_any_system_and_python_are_texts(module, name):
    torch.save({"out": pathlib.Path("/runs")}, "p.pth", _use_new_zipfile_serialization=False)
    content = re.sub(
        rb"c(pathlib[._a-z]*)\nPosixPath\n", f"c{module}\n{name}\n".encode(), pathlib.Path("p.pth").read_bytes()
    )
    pathlib.Path("p.pth").write_bytes(content)
    assert ck.read_checkpoint("p.pth") == {"out": "/runs"}
    # neither another function of that module nor parts that are no texts
    part = rb"X.\0\0\0/?runs"  # Python 3.13 keeps the path in one part
    for old, new in ((f"\n{name}\n".encode(), f"\n{name}.cwd\n".encode()), (part, b"K\1")):
        assert re.search(old, content, flags=re.DOTALL)
        pathlib.Path("p.pth").write_bytes(re.sub(old, new, content, flags=re.DOTALL))
        with pytest.raises(UserError, match="p.pth refused: .*(GLOBAL|Unsupported)"):
            ck.read_checkpoint("p.pth")


def test_a_lightning_checkpoint(trained, caplog):
    model, _, _ = trained
    content = {
        "state_dict": {**prefixed("model.", model), "criterion.weight": torch.ones(3), "metric.count": torch.ones(1)},
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(x=1)},
        "pytorch-lightning_version": "2.4.0",
        "optimizer_states": [],
        "loops": {"fit_loop": {"epoch": 3}},
    }
    with caplog.at_level(logging.INFO, "mdistiller"):
        assert same(loaded(content), model)
    assert caplog.messages == [
        "note: only the weights with the prefix 'model.' are loaded from w.pth; ignored: criterion.weight, metric.count"
    ]


@pytest.mark.parametrize("parallel", ["module.", ""])
def test_the_training_state_of_mdistiller_gives_its_student(trained, parallel, caplog):
    student, _, teacher = trained
    distiller = {**prefixed(f"{parallel}student.", student), **prefixed(f"{parallel}teacher.", teacher)}
    state = {"epoch": 3, "model": distiller, "optimizer": {}, "best_acc": 70.1}
    with caplog.at_level(logging.INFO, "mdistiller"):
        assert same(loaded(state, "latest"), student)
    assert len(caplog.messages) == 1
    assert (
        f"only the weights with the prefix '{parallel}student.' are loaded from latest; ignored: {parallel}"
        in caplog.text
    )
    with pytest.raises(UserError, match=f"weights in latest, below '{parallel}student.', do not fit .*missing: layer"):
        load_checkpoint(build_model("resnet20", 3), state, "latest")


def test_names_of_the_models_own_are_no_prefix(trained):
    held = torch.nn.ModuleDict({"model": trained[0]})
    target = torch.nn.ModuleDict({"model": build_model("resnet8", 3)})
    load_checkpoint(target, {"state_dict": prefixed("module.", held)}, "h.pth")
    assert same(target.state_dict(), held)


def test_several_models_are_refused_by_their_places(trained):
    first, second, _ = trained
    both = {"model": first.state_dict(), "net": second.state_dict()}
    with pytest.raises(UserError, match="b.pth holds several models, below 'model', 'net'; save the one to use"):
        weights_of(both, "b.pth")
    both = {**prefixed("model.", first), **prefixed("net.", second)}
    with pytest.raises(UserError, match="b.pth holds several models that fit, below 'model.', 'net.'; save the"):
        load_checkpoint(build_model("resnet8", 3), both, "b.pth")
    with pytest.raises(UserError, match=r"holds no model weights \(keys: model, generator\)"):
        weights_of({"model": "resnet8", "generator": first.state_dict()}, "b.pth")


# --- safetensors


def test_a_safetensors_file_loads_whatever_its_name(trained):
    for name in ("w.safetensors", "w.pth"):
        save_file(prefixed("module.", trained[0]), name, metadata={"format": "pt"})
        student = ck.load_student(ck.read_checkpoint(name), "resnet8", 3, name)
        assert same(student.backbone.state_dict(), trained[0])
    torch.save(trained[0].state_dict(), "t.safetensors")
    assert same(ck.read_checkpoint("t.safetensors"), trained[0])


@pytest.mark.parametrize("keep", [9, 200, -1, -5000])
def test_a_damaged_safetensors_file_is_named(trained, keep):
    save_file(trained[0].state_dict(), "w.safetensors")
    path = pathlib.Path("w.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"w\.safetensors is a damaged safetensors file \(.*\); get it again") as caught:
        ck.read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_safetensors_that_fit_nothing_are_named(trained):
    save_file({"a": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)}, "w.safetensors")
    with pytest.raises(UserError, match="weights in w.safetensors do not fit ResNet; missing: conv1.weight"):
        ck.load_student(ck.read_checkpoint("w.safetensors"), "resnet8", 3, "w.safetensors")


def test_without_the_package_it_is_what_to_install(trained, monkeypatch):
    save_file(trained[0].state_dict(), "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="w.safetensors is a safetensors file; run: pip install safetensors"):
        ck.read_checkpoint("w.safetensors")


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"module": state},
        lambda state: {"ema": {"module": state}},
        lambda state: {"model": {**state, "_extra_state": None}},
        lambda state: {**state, "epoch": 3},
    ],
    ids=["deepspeed", "an average", "an extra state", "an epoch beside"],
)
def test_what_stands_around_or_beside_the_weights(trained, around):
    assert same(loaded(around(trained[0].state_dict())), trained[0])
