"""Teacher and student of a run: their weights, arguments, and what the teacher sees."""

from __future__ import annotations

import copy
import logging
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mdistiller.api.data import read_data
from mdistiller.dataset import get_val_loader
from mdistiller.dataset.given import given_data
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.checkpoint import read_checkpoint
from mdistiller.engine.networks.build import (
    _check_described_teacher,
    build_student,
    build_teacher,
    teacher_input,
    with_student_input,
)
from mdistiller.engine.speed.fold_batchnorm import fold_batchnorm
from mdistiller.engine.validate import config_errors
from mdistiller.errors import UserError
from mdistiller.models import InputSpec, build_model, give_own_input, own_input_of
from tests.conftest import REPO

FILE = REPO / "tests/models/adapters/made_models.py"
GIVEN = InputSpec(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
OWN = InputSpec(24, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


@pytest.fixture
def settings(image_folder):
    """`settings(KEY, VALUE, …)`: a configuration for the image folder, and what is known of its images."""
    base = ["DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(image_folder), "DATASET.INPUT_SIZE", "16"]
    base += ["DATASET.MEAN", str(list(GIVEN.mean)), "DATASET.STD", str(list(GIVEN.std)), "DATASET.NUM_WORKERS", "0"]
    base += ["SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "9", "SOLVER.LR_DECAY_STAGES", "[]", "LOG.WANDB", "False"]
    base += ["EXPERIMENT.NAME", "run"]

    def make(*overrides):
        cfg = load_cfg(None, [*base, *map(str, overrides)])
        return cfg, get_val_loader(cfg, torch.device("cpu")).info

    return make


def seen_by_teacher(cfg, info, checkpoint=None):
    student = InputSpec(info.input_size, tuple(info.mean), tuple(info.std))
    return teacher_input(cfg.DISTILLER, info.name, student, checkpoint or {})


@pytest.mark.parametrize("name", ["resnet8", f"{FILE}:Net"])
def test_a_model_converts_its_images_once(name):
    """A mean of 0 and a deviation of 1 give the model the images themselves."""
    torch.manual_seed(0)
    model = build_model(name, 3, "imagefolder", 24).eval()
    plain = copy.deepcopy(model)
    keys = list(model.state_dict())
    converting = give_own_input(model, OWN, GIVEN).eval()
    assert list(converting.state_dict()) == keys
    assert own_input_of(converting) == (24, list(OWN.mean), list(OWN.std), "bicubic")
    image = torch.rand(2, 3, 16, 16)
    mean, std, own_mean, own_std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (GIVEN.mean, GIVEN.std, OWN.mean, OWN.std)
    )
    resized = F.interpolate(image, (24, 24), mode="bicubic", antialias=True, align_corners=False)
    expected, feats = plain((resized - own_mean) / own_std)
    for each in (converting, copy.deepcopy(converting), fold_batchnorm(converting, 16)[0]):
        logits, own_feats = each((image - mean) / std)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own_feats["final_map"], feats["final_map"], rtol=1e-3, atol=1e-3)
        assert each.get_classifier() is not plain.get_classifier()
    assert converting.convert_input(image).dtype == torch.float32


def test_equal_images_need_no_conversion():
    model = build_model("resnet8", 3)
    kind = type(model)
    assert type(give_own_input(model, GIVEN, GIVEN._replace(interpolation="nearest"))) is kind
    assert own_input_of(model) == ()
    other = give_own_input(model, GIVEN._replace(std=OWN.std), GIVEN)  # equal size, other statistics
    assert other.convert_input(torch.ones(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert not torch.equal(other.convert_input(torch.ones(1, 3, 16, 16)), torch.ones(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], GIVEN),
        (["DISTILLER.TEACHER_INPUT", "{size: 24}"], GIVEN._replace(size=24)),
        (["DISTILLER.TEACHER_INPUT", "{}"], GIVEN),
        (["DISTILLER.TEACHER_INPUT", "same", "DISTILLER.TEACHER_WEIGHTS", "pretrained"], GIVEN),
        (["DISTILLER.TEACHER", "torchvision/resnet18"], GIVEN),
        (
            ["DISTILLER.TEACHER", "torchvision/resnet18", "DISTILLER.TEACHER_WEIGHTS", "pretrained"],
            InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"),
        ),
        (
            ["DISTILLER.TEACHER", "torchvision/resnet18", "DISTILLER.TEACHER_INPUT", "pretrained"],
            InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"),
        ),
    ],
)
def test_what_the_teacher_sees(settings, overrides, expected):
    cfg, info = settings("DISTILLER.TEACHER", "resnet8", *overrides)
    assert seen_by_teacher(cfg, info) == expected
    described = {"input_size": 24, "mean": list(OWN.mean), "std": list(OWN.std)}
    if cfg.DISTILLER.TEACHER_INPUT is None and cfg.DISTILLER.TEACHER_WEIGHTS != "pretrained":
        assert seen_by_teacher(cfg, info, described) == OWN._replace(interpolation="bilinear")


@pytest.mark.parametrize("weights", ["", "pretrained"])
def test_a_released_teacher_sees_its_own_normalization(settings, weights):
    """Also where the student's weights, or the user, give another one."""
    cfg, info = settings("DISTILLER.TEACHER", "resnet56", "DISTILLER.TEACHER_WEIGHTS", weights)
    for name, size, mean in (("cifar100", 32, 0.5071), ("imagenet", 224, 0.485)):
        seen = seen_by_teacher(cfg, replace(info, name=name))
        assert (seen.size, seen.mean[0]) == (size, mean)
    assert seen_by_teacher(cfg, info) == GIVEN  # nothing is released for this data set


@pytest.mark.parametrize(
    "value",
    [
        *("wide", "{sizes: 3}", "{size: 0}", "{size: 8.5}", "{mean: 0.5}", "{interpolation: x}"),
        *("{std: [1, 1, 0]}", "{std: [1, .nan, 1]}", "{mean: [.inf, 0, 0]}"),
    ],
)
def test_inputs_that_are_none(settings, value):
    cfg, _ = settings("DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_INPUT", value)
    assert len([line for line in config_errors(cfg) if line.startswith("DISTILLER.TEACHER_INPUT is ")]) == 1


def test_a_teacher_trained_at_another_size_sees_that_size(settings, capsys):
    """Its accuracy is what its own evaluation gave, in training with a cache and in its inference form too."""
    cfg, _ = settings("DISTILLER.STUDENT", "resnet8", "DATASET.INPUT_SIZE", 24, "DATASET.MEAN", str(list(OWN.mean)))
    build_trainer(cfg).train()
    path = "output/run/student_best.pth"
    overrides = ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_WEIGHTS", path]
    overrides += ["DISTILLER.STUDENT", "resnet8", "EXPERIMENT.NAME", "next", "TEACHER_CACHE", "./cache"]
    cfg, info = settings(*overrides)
    assert own_input_of(build_teacher(cfg, info))[:2] == (24, list(OWN.mean))
    build_trainer(cfg).train()
    out = capsys.readouterr().out
    assert "the student sees 16 px, mean [0.5, 0.4, 0.3], std [0.2, 0.25, 0.3]; the teacher sees 24 px" in out
    assert "resized (bilinear)" in out
    # another input is another teacher to the cache
    cfg, _ = settings(*overrides, "DISTILLER.TEACHER_INPUT", "same", "EXPERIMENT.NAME", "third")
    build_trainer(cfg).train()
    assert "teacher_input" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["resnet8", f"{FILE}:Net"])
def test_student_weights_and_a_new_classifier(settings, name, caplog):
    torch.manual_seed(3)
    other = build_model(name, 7, "imagefolder", 16)
    wrapped = {"state_dict": {f"module._orig_mod.{key}": value for key, value in other.state_dict().items()}}
    torch.save(wrapped, "weights.pth")
    cfg, info = settings("DISTILLER.STUDENT", name, "DISTILLER.STUDENT_WEIGHTS", "weights.pth")
    with caplog.at_level(logging.INFO, "mdistiller"):
        student = build_student(cfg, info)
    assert "has 7 outputs in weights.pth; the student starts with a new one of 3" in caplog.text
    assert student.get_classifier().out_features == 3
    classifier = {id(parameter) for parameter in student.get_classifier().parameters()}
    for key, value in student.named_parameters():
        assert (id(value) in classifier) != torch.equal(value, other.get_parameter(key)) or key.endswith("bias")
    same = build_model(name, 3, "imagefolder", 16)
    torch.save(same.state_dict(), "weights.pth")
    assert torch.equal(build_student(cfg, info).get_classifier().weight, same.get_classifier().weight)
    # a teacher's classifier must fit
    torch.save(wrapped, "weights.pth")
    cfg, info = settings("DISTILLER.TEACHER", name, "DISTILLER.TEACHER_WEIGHTS", "weights.pth")
    with pytest.raises(UserError, match="has 7 outputs, the data set imagefolder has 3 classes; name its outputs"):
        build_teacher(cfg, info)


def test_pretrained_weights_come_from_the_library(settings, monkeypatch):
    torch.manual_seed(3)
    released = build_model("torchvision/mobilenet_v3_small", 3, "imagefolder", 16)
    monkeypatch.setattr(
        "torchvision.models.MobileNet_V3_Small_Weights.get_state_dict", lambda *args, **kwargs: released.state_dict()
    )
    overrides = [
        f"DISTILLER.{role}{key}"
        for role in ("TEACHER", "STUDENT")
        for key in (" torchvision/mobilenet_v3_small", "_WEIGHTS pretrained")
    ]
    cfg, info = settings(*" ".join(overrides).split())
    monkeypatch.setattr("mdistiller.engine.networks.build.library_input", lambda name: OWN)
    teacher = build_teacher(cfg, info)
    for model in (build_student(cfg, info), teacher):
        assert torch.equal(model.classifier[3].weight, released.classifier[3].weight)
    assert own_input_of(teacher)[0] == 24


def test_a_pretrained_student_sees_its_own_images(settings, monkeypatch, caplog):
    """Of its library or of a checkpoint, where the configuration gives no mean and no size."""
    cfg, _ = settings("DISTILLER.STUDENT", "resnet8", "DATASET.INPUT_SIZE", 24, "DATASET.MEAN", str(list(OWN.mean)))
    build_trainer(cfg).train()
    monkeypatch.setattr("mdistiller.engine.networks.build.library_input", lambda name: OWN)
    unset = ("DATASET.MEAN", "None", "DATASET.STD", "None", "DATASET.INPUT_SIZE", "None")
    trained = InputSpec(24, OWN.mean, GIVEN.std)
    for weights, own in (("pretrained", OWN), ("output/run/student_best.pth", trained)):
        cfg, _ = settings("DISTILLER.STUDENT_WEIGHTS", weights, *unset)
        with caplog.at_level("INFO", "mdistiller"):
            data = with_student_input(cfg).DATASET
        assert (data.INPUT_SIZE, tuple(data.MEAN), tuple(data.STD)) == own[:3]
        assert "the student sees images as its weights were trained on: DATASET.MEAN [0.1, 0.2, 0.3]" in caplog.text
        data = with_student_input(settings("DISTILLER.STUDENT_WEIGHTS", weights, *unset[:4])[0]).DATASET
        assert (data.INPUT_SIZE, tuple(data.MEAN)) == (16, own.mean)
        given = settings("DISTILLER.STUDENT_WEIGHTS", weights)[0]
        assert with_student_input(given) is given
    cfg, _ = settings(*unset)
    assert with_student_input(cfg) is cfg


def test_only_data_without_a_size_of_their_own_take_that_of_the_weights(image_folder, tmp_path, monkeypatch):
    """Folders do, whatever way they are given; the sizes of a data set and of a Dataset stay."""
    monkeypatch.setattr("mdistiller.engine.networks.build.library_input", lambda name: OWN)
    shutil.copytree(image_folder / "val", tmp_path / "elsewhere")
    pairs = ("DISTILLER.STUDENT_WEIGHTS", "pretrained", "DATASET.INPUT_SIZE", "None")
    pictures = [(torch.zeros(3, 16, 16), label) for label in (0, 1, 2)]
    for train, size in ((image_folder / "train", OWN.size), (pictures, None)):
        data = read_data(train, tmp_path / "elsewhere")
        with given_data(data.make):
            found = with_student_input(load_cfg(None, [*pairs, "DATASET.TYPE", "python"]))
        assert size == found.DATASET.INPUT_SIZE
    assert with_student_input(load_cfg(None, [*pairs, "DATASET.TYPE", "cifar100"])).DATASET.INPUT_SIZE is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["DISTILLER.TEACHER", "torchvision/resnet18"],
            "no weights are given for torchvision/resnet18; give a checkpoint",
        ),
        (["DISTILLER.TEACHER", f"{FILE}:Net", "DISTILLER.TEACHER_WEIGHTS", "pretrained"], "no library that releases"),
        (["DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_INPUT", "pretrained"], "TEACHER_INPUT pretrained needs a"),
        (["DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_ARGS", "{depth: 3}"], "fails with num_classes=3, depth=3"),
    ],
)
def test_teachers_that_are_none(settings, overrides, message):
    torch.save({"model": build_model("resnet8", 3).state_dict()}, "teacher.pth")
    file = ["DISTILLER.TEACHER_WEIGHTS", "teacher.pth"] if overrides[1] == "resnet8" else []
    cfg, info = settings(*file, *overrides)
    with pytest.raises(UserError, match=message) as caught:
        build_teacher(cfg, info)
    assert "\n" not in str(caught.value)


def test_the_users_constructor_may_load_the_teachers_weights(settings):
    cfg, info = settings("DISTILLER.TEACHER", f"{FILE}:Net")
    assert build_teacher(cfg, info).head.out_features == 3


def test_a_checkpoint_records_arguments(settings):
    cfg, _ = settings("DISTILLER.STUDENT", f"{FILE}:Net", "DISTILLER.STUDENT_ARGS", "{width: 4}")
    build_trainer(cfg).train()
    checkpoint = read_checkpoint("output/run/student_best.pth")
    assert (checkpoint["arch"], checkpoint["arguments"]) == (f"{FILE}:Net", {"width": 4})
    # as a teacher, it is built with them
    given = ["DISTILLER.TEACHER", f"{FILE}:Net", "DISTILLER.TEACHER_WEIGHTS", "output/run/student_best.pth"]
    cfg, info = settings(*given)
    assert build_teacher(cfg, info).head.in_features == 16


@pytest.mark.parametrize(("trained", "noted"), [(0.0, True), (0.1, True), (0.25, False), (0.5, False)])
def test_images_that_a_teacher_may_have_been_trained_on(settings, caplog, trained, noted):
    """A smaller part of the images that is held out lies within a larger one."""
    _, info = settings()
    cfg = load_cfg(
        None, ["DATASET.TYPE", "imagefolder", "DATASET.VAL_FRACTION", "0.25", "DISTILLER.TEACHER", "resnet14"]
    )
    config = {"DATASET": {"VAL_FRACTION": trained}}
    caplog.set_level(logging.INFO, "mdistiller")
    _check_described_teacher(cfg, info, {"arch": "resnet14", "head": None, "config": config, "dataset": info.name}, "f")
    assert ("some images to validate on may be ones" in caplog.text) == noted
