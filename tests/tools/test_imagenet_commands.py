"""The command lines on the ImageNet sets, with toy pictures in their folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import hub

from tests.conftest import REPO, make_image_folder

SFAKD = REPO / "configs/imagenet/r34_r18/sfakd.yaml"
SETTINGS = {
    "SOLVER.EPOCHS": 1,
    "SOLVER.LR_DECAY_STAGES": "[]",
    "SOLVER.BATCH_SIZE": 6,
    "DATASET.INPUT_SIZE": 64,
    "DATASET.AUGMENT": "resized_crop",
    "DATASET.NUM_WORKERS": 0,
    "LOG.WANDB": False,
}
ONE_STEP = [word for pair in SETTINGS.items() for word in pair]


@pytest.fixture
def toy(tmp_path):
    """ImageNet's folders with 3 classes, and a teacher as torchvision would save it."""
    root = make_image_folder(tmp_path / "data" / "imagenet", train=2, val=2, size=80)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet34(num_classes=3).state_dict(), tmp_path / "resnet34.pth")
    return root


def test_a_step_of_sfakd_and_its_evaluation(command, toy):
    arguments = ("-d", "imagenet", *ONE_STEP, "DISTILLER.TEACHER_WEIGHTS", "resnet34.pth")
    status, out, err = command("train", "--cfg", SFAKD, *arguments)
    assert (status, err) == (0, "")
    assert "SFAKD: student ResNet18, imagenet (6 training and 6 validation images, 3 classes, 64 px)" in out
    summary = json.loads(Path("output/sfakd_res34_res18/summary.json").read_text())
    assert (summary["dataset"], summary["teacher"], summary["student"]) == ("imagenet", "ResNet34", "ResNet18")
    status, out, err = command("eval", "-m", "ResNet18", "-c", "output/sfakd_res34_res18/student_latest.pth")
    assert (status, err) == (0, "")
    top1 = summary["last"]["deployed_top1"]
    assert re.search(rf"deployed  top-1 {top1:.2f} [\s\S]*recorded  top-1 {top1:.2f} ", out)


def test_a_raw_checkpoint_of_torchvision(command, toy):
    size = ("DATASET.INPUT_SIZE", "64", "DATASET.NUM_WORKERS", "0")
    status, out, err = command("eval", "-m", "ResNet34", "-c", "resnet34.pth", "-d", "imagenet", *size)
    assert (status, err) == (0, "")
    assert "imagenet, 6 validation images, 3 classes" in out
    _, _, err = command("eval", "-m", "ResNet34", "-c", "resnet34.pth", "-d", "tiny_imagenet", *size)
    assert err.count("\n") == 1 and "tiny-imagenet-200/train is missing" in err


def test_the_teacher_is_torchvisions_where_none_is_named(command, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def fail(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr(hub, "download_url_to_file", fail)
    status, _, err = command("train", "--cfg", SFAKD, *ONE_STEP)
    assert status == 2
    assert err.count("\n") == 1
    assert re.search("resnet34-b627a593.pth and could not be downloaded .*put it there, or give a file", err)
    place = tmp_path / "torch" / "hub" / "checkpoints" / "resnet34-b627a593.pth"
    place.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "resnet34.pth").rename(place)
    assert command("train", "--cfg", SFAKD, *ONE_STEP)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("DATASET.ROOT", "gone"), "gone/val is missing; expected ImageNet"),
        (("DISTILLER.STUDENT", "vgg8"), "vgg8 is a CIFAR model, not one for DATASET.TYPE imagenet"),
        (("DISTILLER.TEACHER", "ResNet35"), "unknown ImageNet model 'ResNet35'; did you mean"),
        (("DISTILLER.TEACHER", "MobileNetV1"), "no ImageNet weights of MobileNetV1 are released"),
        (("-d", "cifar100", "DISTILLER.STUDENT", "MobileNetV1"), "MobileNetV1 is an ImageNet model"),
        (("-d", "tiny_imagenet"), "tiny-imagenet-200/train is missing; unpack tiny-imagenet-200.zip"),
    ],
)
def test_what_cannot_work_is_one_line(command, toy, arguments, message):
    status, _, err = command("train", "--cfg", SFAKD, *ONE_STEP, *arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert message in err


def test_own_large_images_have_the_imagenet_family(command, toy):
    common = (*ONE_STEP, "DATASET.ROOT", toy, "DATASET.INPUT_SIZE", "66", "DISTILLER.STUDENT", "ResNet18")
    status, _, err = command("train", "--cfg", REPO / "configs/imagefolder/teacher.yaml", *common)
    assert (status, err) == (0, "")
    state = torch.load("output/images_teacher_vgg13/student_latest.pth", weights_only=True)
    assert state["model"]["conv1.weight"].shape == (64, 3, 7, 7)


def test_a_step_on_tiny_imagenet(command, tmp_path):
    root = tmp_path / "data" / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for label, wnid in enumerate(("n01443537", "n01629819")):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for number in range(3):
            picture = Image.fromarray(np.full((64, 64, 3), 90 * label + 10 * number, np.uint8))
            picture.save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
        picture.save(root / "val" / "images" / f"val_{label}.JPEG")
        rows.append(f"val_{label}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    config = REPO / "configs/tiny_imagenet/vanilla/MobileNetV2.yaml"
    status, out, err = command(
        "train", "--cfg", config, "SOLVER.SCHEDULE", "linear", "SOLVER.EPOCHS", "1", "LOG.WANDB", "False"
    )
    assert (status, err) == (0, "")
    assert "tiny_imagenet (6 training and 2 validation images, 2 classes, 64 px)" in out
