"""Accuracy from Python: what training and tools/eval.py print, and what a loop over the images counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mdistiller
from mdistiller.engine import checkpoint as ck
from tests.api.conftest import SIZE, OwnNet, Pictures
from tests.export.conftest import build_student, describe


@pytest.fixture
def student_file(tmp_path, image_folder):
    ck.save(describe(build_student("SFAKD"), image_folder), tmp_path / "student.pth")
    return tmp_path / "student.pth"


def test_a_student_has_the_accuracy_that_eval_prints(command, student_file, image_folder):
    _, out, _ = command("eval", "-m", "resnet8", "-c", student_file, "--no-speed")
    val = Pictures(image_folder / "val")
    val.classes = ["class_0", "class_1", "class_2"]
    student = mdistiller.load(student_file)
    forms = [
        mdistiller.evaluate(student_file),
        *(mdistiller.evaluate(student, data) for data in (image_folder, image_folder / "val", val, list(val))),
        mdistiller.evaluate(student, image_folder, batch_size=5),
    ]
    assert all(found == forms[0] for found in forms)
    assert f"deployed  top-1 {forms[0]['top1']:.2f}  top-5 {forms[0]['top5']:.2f}" in out
    guesses = [student.predict(image, k=1)[0].index for image, _ in val]
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for guess, (_, label) in zip(guesses, val):
        expected[label, guess] += 1
    assert forms[0]["confusion"] == expected.tolist()
    assert forms[0]["num_images"] == 18
    assert forms[0]["top1"] == round(100 * int(expected.diag().sum()) / 18, 2)
    assert list(forms[0]["per_class"]) == val.classes
    assert forms[0]["per_class"]["class_1"] == round(100 * int(expected[1, 1]) / 6, 2)


def test_a_module_sees_images_with_the_given_normalization(image_folder):
    class Shown(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, image):
            assert not self.training and not torch.is_grad_enabled()
            self.seen = image
            return torch.eye(3)[torch.arange(len(image)) // 6], {"more": None}

    model = Shown().train()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    found = mdistiller.evaluate(model, image_folder / "val", mean=mean, std=std, input_size=SIZE)
    assert (found["top1"], found["per_class"]) == (100.0, {"class_0": 100.0, "class_1": 100.0, "class_2": 100.0})
    with Image.open(image_folder / "val" / "class_0" / "0.png") as image:
        pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(model.seen[0], expected)
    assert model.training


def test_classes_without_images_and_other_classes(student_file, image_folder):
    first = [item for item in Pictures(image_folder / "val") if item[1] != 1]
    found = mdistiller.evaluate(OwnNet(), first)
    assert found["per_class"]["1"] is None and found["num_images"] == 12
    named = Pictures(image_folder / "val")
    named.classes = ["a", "b", "c"]
    with pytest.raises(mdistiller.UserError, match="knows class 0 as 'class_0', in the data set python it is 'a'"):
        mdistiller.evaluate(student_file, named)
