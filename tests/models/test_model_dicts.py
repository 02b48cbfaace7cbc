"""The dictionaries of models."""

from __future__ import annotations

import os

import pytest
import torch

from mdistiller import models
from mdistiller.errors import UserError
from mdistiller.models import (
    build_model,
    cifar_model_dict,
    find_model,
    imagenet_model_dict,
    register_model,
    released_teacher,
    tiny_imagenet_model_dict,
)
from mdistiller.models.cifar import (
    mobilenetv2,
    mobilenetv2_full,
    resnet,
    resnetv2,
    shufflenetv1,
    shufflenetv2,
    vgg,
    wrn,
)

FAMILIES = {
    resnet: "resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4",
    resnetv2: "ResNet18 ResNet34 ResNet50",
    wrn: "wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2",
    vgg: "vgg8 vgg11 vgg13 vgg16 vgg19",
    mobilenetv2: "MobileNetV2",
    shufflenetv1: "ShuffleV1",
    shufflenetv2: "ShuffleV2",
}
TEACHERS = {"resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13"}


def test_names_and_constructors():
    constructors = {name: getattr(module, name) for module, names in FAMILIES.items() for name in names.split()}
    assert {name: constructor for name, (constructor, _) in cifar_model_dict.items()} == constructors
    constructors["MobileNetV2"] = mobilenetv2_full.FullMobileNetV2
    assert tiny_imagenet_model_dict == {name: (constructor, None) for name, constructor in constructors.items()}


def test_constructors_default_to_100_classes():
    assert cifar_model_dict["resnet8"][0]().get_classifier().out_features == 100
    assert resnet.resnet8(num_classes=3).get_classifier().out_features == 3


def test_teachers():
    assert {name for name, (_, teacher) in cifar_model_dict.items() if teacher is not None} == TEACHERS


def test_teacher_path_follows_the_environment(monkeypatch, tmp_path):
    teacher = cifar_model_dict["wrn_40_2"][1]
    monkeypatch.setenv("MDISTILLER_CKPTS", str(tmp_path))
    path = tmp_path / "cifar_teachers" / "wrn_40_2_vanilla" / "ckpt_epoch_240.pth"
    assert str(teacher) == os.fspath(teacher) == str(path)
    path.parent.mkdir(parents=True)
    torch.save({"model": {"x": torch.ones(2)}}, path)
    assert torch.equal(torch.load(teacher, weights_only=True)["model"]["x"], torch.ones(2))


def test_teacher_path_follows_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("MDISTILLER_CKPTS", raising=False)
    (tmp_path / "download_ckpts").mkdir()
    monkeypatch.chdir(tmp_path)
    expected = tmp_path / "download_ckpts/cifar_teachers/vgg13_vanilla/ckpt_epoch_240.pth"
    assert str(cifar_model_dict["vgg13"][1]) == str(expected)


@pytest.mark.parametrize("dataset", ["cifar100", "tiny_imagenet", "own_data"])
def test_build_model(dataset):
    model = build_model("wrn_16_1", num_classes=4, dataset=dataset)
    assert isinstance(model, wrn.WideResNet)
    assert model.get_classifier().out_features == 4


def test_build_model_for_imagenet(monkeypatch):
    large = imagenet_model_dict["MobileNetV1"]
    monkeypatch.setattr(models, "imagenet_model_dict", {"resnet8": large})
    model = models.build_model("resnet8", num_classes=8, dataset="imagenet")
    assert type(model) is type(large())
    assert model.get_classifier().out_features == 8


def test_misses_name_the_nearest():
    with pytest.raises(UserError, match=r"^unknown CIFAR model 'resnet18'; did you mean .*ResNet18.*\?$"):
        build_model("resnet18", num_classes=10)
    with pytest.raises(UserError, match=r"^unknown Tiny-ImageNet model 'vgg9'; did you mean .*vgg"):
        build_model("vgg9", num_classes=10, dataset="tiny_imagenet")
    with pytest.raises(UserError, match=r"^unknown ImageNet model 'Q'"):
        build_model("Q", num_classes=10, dataset="imagenet")
    with pytest.raises(UserError, match=r"^unknown ImageNet model 'ResNet35'; did you mean .*ResNet34"):
        build_model("ResNet35", num_classes=10, dataset="own_data", input_size=96)


def test_data_set_and_size_choose_among_models_of_one_name():
    small, large = cifar_model_dict["ResNet18"][0], imagenet_model_dict["ResNet18"]
    assert find_model("ResNet18") is find_model("ResNet18", "cifar100", 224) is small
    assert find_model("ResNet18", "cifar10", 224) is small
    assert find_model("ResNet18", "tiny_imagenet", 64) is find_model("ResNet18", "tiny_imagenet", 128) is small
    assert find_model("ResNet18", "imagenet") is find_model("ResNet18", "imagenet", 32) is large
    assert find_model("ResNet18", "imagefolder") is find_model("ResNet18", "imagefolder", 64) is small
    assert find_model("ResNet18", "imagefolder", 65) is large


def test_tiny_imagenet_has_a_mobilenetv2_of_its_own():
    assert find_model("MobileNetV2", "tiny_imagenet", 64) is mobilenetv2_full.FullMobileNetV2
    for dataset in ("cifar10", "cifar100", "imagefolder"):
        assert find_model("MobileNetV2", dataset, 64) is mobilenetv2.MobileNetV2


def test_own_images_take_the_names_of_both_families():
    for size in (None, 32, 224):
        assert find_model("vgg8", "imagefolder", size) is vgg.vgg8
        assert find_model("MobileNetV1", "imagefolder", size) is imagenet_model_dict["MobileNetV1"]


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("MobileNetV1", "cifar10", "MobileNetV1 is an ImageNet model, not one for DATASET.TYPE cifar10; did you"),
        ("MobileNetV1", "cifar100", "MobileNetV1 is an ImageNet model, not one for DATASET.TYPE cifar100; did you"),
        ("ResNet101", "tiny_imagenet", "ResNet101 is an ImageNet model, .* tiny_imagenet; did you mean .*ResNet50"),
        ("MobileNetV2", "imagenet", "MobileNetV2 is a CIFAR model, .* imagenet; did you mean MobileNetV1"),
        ("wrn_40_2", "imagenet", "wrn_40_2 is a CIFAR model, .* imagenet; known: MobileNetV1, ResNet101"),
    ],
)
def test_a_name_of_the_other_family(name, dataset, message):
    with pytest.raises(UserError, match=message):
        find_model(name, dataset)


def test_released_teachers(monkeypatch, tmp_path):
    assert released_teacher("vgg13") is cifar_model_dict["vgg13"][1]
    for case in (
        ("vgg8",),
        ("vgg13", "imagefolder", 32),  # even with 100 classes: they are not those of CIFAR-100
        ("vgg13", "fashion_demo"),
        ("vgg13", "cifar10"),
        ("ResNet50", "tiny_imagenet"),
        ("ResNet50", "imagefolder", 224),
        ("ResNet101", "own_data"),
    ):
        assert released_teacher(*case) is None
    monkeypatch.setattr(models, "released_file", lambda name: tmp_path / name)
    assert released_teacher("ResNet50", "imagenet", 224) == tmp_path / "ResNet50"


@pytest.mark.usefixtures("registries_as_before")
def test_models_of_ones_own_in_the_dictionaries():
    own = resnet.resnet14
    cifar_model_dict["mine"] = (own, "mine.pth")  # as in MDistiller
    imagenet_model_dict["alone"] = own
    tiny_imagenet_model_dict["pair"] = (own, None)
    assert find_model("mine") is find_model("alone", "imagenet") is find_model("pair", "tiny_imagenet") is own
    assert released_teacher("mine") == released_teacher("mine", "imagefolder", 32) == "mine.pth"
    assert released_teacher("pair", "tiny_imagenet") is None
    for dataset in ("imagenet", "tiny_imagenet"):
        with pytest.raises(UserError, match="mine"):
            find_model("mine", dataset)
    for entry in ("resnet14", (own, None, None), None):
        cifar_model_dict.pop("mine")
        cifar_model_dict["mine"] = entry
        with pytest.raises(UserError, match="the model mine is registered as .*; expected a constructor, or "):
            find_model("mine")


@pytest.mark.usefixtures("registries_as_before")
def test_a_registered_model_is_one_of_every_data_set():
    own = register_model("mine")(lambda num_classes: resnet.resnet8(num_classes=num_classes))
    for dataset in ("cifar100", "tiny_imagenet", "imagenet", "imagefolder"):
        assert find_model("mine", dataset, 224) is own
    for taken in ("mine", "resnet8", "MobileNetV1"):
        before = [dict(family) for family in models.FAMILIES]
        with pytest.raises(UserError, match=f"model '{taken}' is defined twice, in .*py and .*test_model_dicts.py"):
            register_model(taken)(own)
        assert before == [dict(family) for family in models.FAMILIES]
