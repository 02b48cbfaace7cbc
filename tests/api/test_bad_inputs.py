"""What users of the Python API get wrong: a UserError of one line, and no run folder."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import mdistiller
from mdistiller.engine import checkpoint as ck
from tests.api.conftest import OwnNet, Pictures
from tests.conftest import make_image_folder
from tests.export.conftest import build_student, describe


def random_crop(image):
    return np.roll(image, int(torch.randint(1, 9, ())), 0)


def normalized(image):
    return torch.tensor(image).permute(2, 0, 1) / 127.5 - 1


def fault(call, *arguments, **options):
    with pytest.raises(mdistiller.UserError) as error:
        call(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1
    assert not os.path.exists("output")
    return str(error.value)


BAD_OPTIONS = [
    ({"epoch": 3}, "unknown option 'epoch'; did you mean epochs"),
    ({"epochs": 3, "settings": {"SOLVER.EPOCHS": 4}}, r"epochs and settings\['SOLVER.EPOCHS'\] are the same key"),
    ({"settings": {"DISTILLER.TYPE": "KD"}}, "settings has 'DISTILLER.TYPE', which the argument method sets"),
    (
        {"settings": {"SFAKD.SIGMAA": 1}},
        "unknown config key SFAKD.SIGMAA in mdistiller.distill; did you mean SFAKD.SIGMA",
    ),
    ({"settings": ["SFAKD.SIGMA", 1]}, r"settings is \[.*; expected values by key"),
    ({"settings": {"SOLVER": {"EPOCHS": 3}}}, "epochs and settings.'SOLVER.EPOCHS'. are the same key"),
    ({"settings": {"SOLVER": {"LR": 1}, "SOLVER.LR": 2}}, "settings gives SOLVER.LR more than once"),
    ({"settings": {"SOLVER": {3: 1}}}, "settings has the key SOLVER.3; expected values by key"),
    ({"settings": {"SFAKD": 3, "SFAKD.SIGMA": 1}}, "settings gives SFAKD both as a value and as a section"),
    ({"epochs": "many"}, "SOLVER.EPOCHS in mdistiller.distill is 'many'; expected a whole number"),
    ({"lr": -1}, "SOLVER.LR is -1.0; expected"),
    ({"method": "SFAK"}, "unknown distiller 'SFAK'; did you mean SFAKD"),
    ({"method": None}, "method is None; expected the name of a distiller"),
    ({"output": "/"}, "output is '/'; expected a folder with a name"),
    ({"output": 3}, "output is a int; expected the path of a folder"),
    ({"resume": True, "overwrite": True}, "--resume and --overwrite contradict each other"),
    ({"classes": ["a", "b", "c"]}, "classes is for a Dataset"),
    ({"teacher": None}, "the method SFAKD needs a teacher; give one, or train the student alone: method='NONE'"),
    ({"teacher": 3}, "the teacher is 3; expected a torch.nn.Module or a name"),
    ({"student": None}, "the student is None; expected a torch.nn.Module or a name"),
    ({"student": OwnNet}, "the student is <class .*; expected a torch.nn.Module or a name"),
    ({"student": "resnet9"}, "unknown CIFAR model 'resnet9'; did you mean resnet8"),
    ({"teacher": "gone.pth"}, "no checkpoint at gone.pth"),
    ({"teacher": "weights.pth"}, "weights.pth holds weights alone; give teacher='NAME' and teacher_weights="),
    ({"teacher": "own.pth"}, "own.pth holds os:system, a model defined in custom code; if you trust it"),
    ({"teacher": "student.pth"}, "student.pth is a student that needs its SFAKD head; a teacher must be a bare model"),
    ({"train_data": "gone"}, "train_data is 'gone', which is not a folder here"),
    ({"train_data": "cifar101"}, "train_data is 'cifar101', which is not a folder here; did you mean cifar10"),
    ({"train_data": 3}, "train_data is a int; expected a folder, the name of a data set, or a Dataset"),
    ({"train_data": "cifar100", "val_data": "gone"}, "'cifar100' has its own validation images; leave val_data out"),
    ({"method": "NONE"}, "the method NONE uses no teacher; give teacher=None, or another method"),
]


@pytest.mark.parametrize(("change", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_bad_arguments(image_folder, quick, change, message):
    torch.save({"model": OwnNet().state_dict()}, "weights.pth")
    content = describe(build_student("SFAKD"), image_folder)
    ck.save(content, image_folder.parent / "student.pth")
    torch.save({**content, "arch": "os:system", "arguments": {"command": "touch hacked"}}, "own.pth")
    given = {"student": OwnNet(), "teacher": OwnNet(16), "train_data": image_folder, **quick, **change}
    assert_matches(message, fault(mdistiller.distill, **given))
    assert not os.path.exists("hacked")


def assert_matches(pattern, text):
    assert re.search(pattern, text), text


def test_bad_data_sets(image_folder, quick):
    train, val = Pictures(image_folder / "train"), Pictures(image_folder / "val")
    other = make_image_folder(image_folder.parent / "other", classes=2)
    cases = [
        (DataLoader(train), val, "train_data is a DataLoader; expected a folder, the name of a data set, or a Dataset"),
        (train, None, "val_data is missing; give a folder or a Dataset"),
        ([], val, "train_data is empty"),
        ([1, 2], val, "item 0 of train_data is a int; expected .image, label."),
        ([(train[0][0], "cat")], val, "the label of item 0 of train_data is 'cat'; expected a whole number"),
        (
            [(train[0][0], torch.eye(3)[0])],
            val,
            "the label of item 0 of train_data is tensor.*; expected a whole number",
        ),
        ([(train[0][0], np.eye(3)[0])], val, "the label of item 0 of train_data is array.*; expected a whole number"),
        ([(train[0][0], -1)] * 2, val, "train_data has the label -1 for image 0; labels count from 0"),
        ([("picture", 0), ("picture", 1)], val, "image 0 of the data set is a str; expected a PIL image"),
        (Pictures(image_folder / "train", random_crop), val, r"train_data returns different pixels for image \d each"),
        (Pictures(image_folder / "train", normalized), val, "values from -.* leave the normalization to mdistiller"),
        (image_folder / "train", other / "val", "val lacks class_2, which train has"),
        (other / "train", image_folder / "val", "val has class_2, which train lacks"),
        (other / "train", val, "the data have the label 2, but only 2 classes are named"),
        ([(train[0][0], 0)] * 4, [(train[0][0], 0)], "the data have only one class, '0'"),
    ]
    for train_data, val_data, message in cases:
        given = {"output": "output/x", "method": "NONE", **quick}
        assert_matches(message, fault(mdistiller.distill, OwnNet(), None, train_data, val_data, **given))
    flat = [(np.zeros((8, 12, 3), np.uint8), label) for label in (0, 1, 2)]
    given = {**quick, "input_size": None, "method": "NONE"}
    message = fault(mdistiller.distill, OwnNet(), None, flat, val, **given)
    assert_matches("the first image has 12×8 px; give input_size", message)


def test_bad_images(image_folder, tmp_path):
    path = tmp_path / "student.pth"
    ck.save(describe(build_student("SFAKD"), image_folder), path)
    student = mdistiller.load(path)
    (tmp_path / "text.png").write_text("no picture")
    cases = [
        (3, "the image is a int; expected a PIL image"),
        ("gone.png", "cannot read the image gone.png"),
        (tmp_path / "text.png", "cannot read the image .*text.png"),
        (image_folder, "is a folder; give its images as a list of paths"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"the image has the shape \[3, 8, 8\]; expected a PIL image, an array \[H, W, 3\]",
        ),
        (torch.zeros(8, 8, 3), r"the image has the shape \[8, 8, 3\]; expected .* a tensor \[3, H, W\]"),
        (np.zeros((8, 8, 4), np.uint8), r"the image has the shape \[8, 8, 4\]"),
        (np.zeros((8, 8), np.int64), "the image has the type int64"),
        (torch.full((3, 8, 8), 255.0), "the image has values from 255 to 255; expected"),
        (torch.full((3, 8, 8), float("nan")), "the image has values from nan to nan"),
        (np.zeros((0, 8, 3), np.uint8), r"the image has the shape \[0, 8, 3\]"),
        (Image.new("I;16", (8, 8)), "the image has more than 8 bits a channel, mode I;16"),
    ]
    for image, message in cases:
        assert_matches(message, fault(student.predict, image))
        assert_matches(message, fault(student.transform, image))
    for k in (0, -1, 2.5, True):
        assert_matches(f"k is {k}; expected a whole number of at least 1", fault(student.predict, image_folder, k=k))


def test_bad_students(image_folder):
    open("student.onnx", "wb").close()
    assert_matches("student.onnx is an export for another runtime", fault(mdistiller.load, "student.onnx"))
    assert_matches("no checkpoint at gone.pth", fault(mdistiller.load, "gone.pth"))
    assert_matches("holds no student", fault(mdistiller.load, image_folder))
    assert_matches("model is a int; expected a torch.nn.Module", fault(mdistiller.load, "gone.pth", model=3))
    assert_matches("model is a int; expected a torch.nn.Module", fault(mdistiller.evaluate, 3))
    assert_matches("path is a int; expected the path", fault(mdistiller.load, 3))
    assert_matches("mean is 0.5; expected three numbers", fault(mdistiller.evaluate, OwnNet(), image_folder, mean=0.5))
    message = fault(mdistiller.evaluate, torch.nn.Linear(5, 3), image_folder)
    assert_matches(r"the model cannot take the images \(RuntimeError: ", message)
    assert_matches("data is missing", fault(mdistiller.evaluate, OwnNet()))
    message = fault(mdistiller.evaluate, OwnNet(num_classes=5), image_folder, input_size=16)
    assert_matches(r"logits of the shape \[18, 5\] for 18 images; expected .* the 3 classes", message)
    assert_matches("DATASET.TEST.BATCH_SIZE is 0", fault(mdistiller.evaluate, OwnNet(), image_folder, batch_size=0))
    assert_matches("DATASET.STD", fault(mdistiller.evaluate, OwnNet(), image_folder, std=(0, 0, 0)))


def test_class_names_that_contradict_the_data(image_folder, quick):
    train, val = Pictures(image_folder / "train"), Pictures(image_folder / "val")
    folders = {"train_data": image_folder / "train", "val_data": image_folder.parent / "val"}
    shutil.copytree(image_folder / "val", folders["val_data"])
    names = ["class_2", "class_1", "class_0"]
    given = {"student": OwnNet(), "teacher": None, "method": "NONE", "classes": names, **quick}
    assert_matches("classes is for a Dataset", fault(mdistiller.distill, **given, **folders))
    train.classes = names[::-1]
    message = fault(mdistiller.distill, **given, train_data=train, val_data=val)
    assert_matches("but the data have these names in the order .*; leave classes out", message)
    train.classes = ["a", "b", "b"]
    assert_matches(
        r"class names are \['a', 'b', 'b'\]; expected different",
        fault(mdistiller.distill, **{**given, "classes": None}, train_data=train, val_data=val),
    )


def test_a_fraction_to_hold_out_beside_validation_images(image_folder, quick):
    train, val = Pictures(image_folder / "train"), Pictures(image_folder / "val")
    given = {"student": OwnNet(), "teacher": None, "method": "NONE", "val_fraction": 0.5, **quick}
    message = fault(mdistiller.distill, **given, train_data=train, val_data=val)
    assert_matches("DATASET.VAL_FRACTION is 0.5, but python has its own validation images", message)


@pytest.mark.parametrize(("train", "val", "lacking"), [((1, 2), (1, 2), "0"), ((0, 1), (5,), "2, 3, 4, 5")])
def test_labels_that_training_lacks(train, val, lacking):
    def pictures(labels):
        return [(torch.zeros(3, 16, 16), label) for label in labels for _ in range(4)]

    found = fault(mdistiller.distill, "resnet8", None, pictures(train), pictures(val), method="NONE")
    assert f"train_data has no image with the label {lacking}, but" in found
