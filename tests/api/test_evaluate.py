"""Accuracy from Python: what training and tools/eval.py print, and what a loop over the images counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mdistiller
from mdistiller.dataset.loading.dataset_split import split_of
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


def test_a_student_has_its_own_images(student_file, image_folder):
    for option in ({"mean": [0.5] * 3}, {"std": (1.0, 1.0, 1.0)}, {"input_size": 64}):
        with pytest.raises(mdistiller.UserError, match="mean, std and input_size are for a module; a student sees"):
            mdistiller.evaluate(student_file, image_folder, **option)


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


class Spy(nn.Module):
    """Keeps what it sees."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes))
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        return self.weight.expand(len(image), -1)


def test_a_module_sees_the_images_of_a_dataset_as_they_are():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 72, 72, 3), dtype=np.uint8)
    spy = Spy()
    mdistiller.evaluate(spy, [(picture, label) for label, picture in enumerate(pictures)])
    expected = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(torch.cat(spy.seen), expected)


def test_data_that_lack_the_last_classes():
    pictures = [(np.zeros((16, 16, 3), dtype=np.uint8), label) for label in (0, 1, 1)]
    with pytest.raises(mdistiller.UserError, match=r"if a Dataset lacks the last classes, give classes=\[...\]"):
        mdistiller.evaluate(Spy(), pictures)
    found = mdistiller.evaluate(Spy(), pictures, classes=["a", "b", "c"])
    assert found["per_class"] == {"a": 100.0, "b": 0.0, "c": None}


def test_labels_that_the_items_have_and_targets_has_not():
    class Merged(torch.utils.data.Dataset):
        targets = [0, 1, 2, 3] * 5

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return np.zeros((16, 16, 3), dtype=np.uint8), self.targets[index] // 2

    assert mdistiller.evaluate(Spy(2), Merged())["confusion"] == [[10, 0], [10, 0]]


class Broken(torch.utils.data.Dataset):
    """20 images with labels, of which those at `places` cannot be read."""

    targets = [0, 1] * 10

    def __init__(self, *places):
        self.places = places

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        if index in self.places:
            raise OSError("truncated")
        return np.full((16, 16, 3), index, dtype=np.uint8), self.targets[index]


def test_items_that_cannot_be_read_do_not_hide_the_labels_of_others():
    assert split_of(Broken(19), "data").targets.tolist() == Broken.targets


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_items_that_cannot_be_read_are_left_out_on_request(quick, in_memory, caplog):
    data = Broken(0, 13)
    quick = {**quick, "input_size": None, "settings": {"DATASET.CORRUPT": "skip", "DATASET.IN_MEMORY": in_memory}}
    result = mdistiller.distill("resnet8", None, data, data, "NONE", **quick)
    assert (result.summary["train_images"], result.summary["val_images"]) == (18, 18)
    line = "left out 2 of 20 training images that cannot be read: 0 of the Broken (truncated); 13 of the Broken"
    assert any(line in message for message in caplog.messages)
    quick["settings"]["DATASET.CORRUPT"] = "refuse"
    with pytest.raises(mdistiller.UserError, match="cannot read .*0 of the Broken"):
        mdistiller.distill("resnet8", None, data, data, "NONE", **quick, overwrite=True)


@pytest.mark.parametrize(
    "targets", [7, torch.tensor(1), torch.eye(3), [0], "labels", {"a": 1}, np.array([[0], [1], [1]])]
)
def test_labels_are_those_of_the_items_whatever_targets_holds(targets):
    data = [(np.zeros((16, 16, 3), np.uint8), label) for label in (0, 1, 1)]
    data = type("Set", (list,), {"targets": targets})(data)
    assert split_of(data, "data").targets.tolist() == [0, 1, 1]
    assert split_of(torch.utils.data.Subset(data, [2, 0]), "data").targets.tolist() == [1, 0]


def test_a_fault_of_the_data_set_itself():
    wrong = Broken(*range(20))
    line = "none of the first 8 images can be read: 0 of the Broken .truncated.; correct the Dataset"
    with pytest.raises(mdistiller.UserError, match=line):
        mdistiller.distill("resnet8", None, wrong, wrong, "NONE")


@pytest.mark.parametrize("output", [{"logits": 1}, None, "text"])
def test_a_module_that_returns_no_logits(output):
    class Other(nn.Module):
        def forward(self, image):
            return output

    data = [(np.zeros((16, 16, 3), np.uint8), label) for label in (0, 1)]
    with pytest.raises(mdistiller.UserError, match=r"the model returns a \w+; expected logits \[B, K\]"):
        mdistiller.evaluate(Other(), data)


def test_an_item_with_a_label_that_is_no_number_is_refused_although_targets_has_one():
    class Words(torch.utils.data.Dataset):
        targets = [0, 1] * 5

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return np.zeros((16, 16, 3), dtype=np.uint8), "cat" if index == 9 else self.targets[index]

    with pytest.raises(mdistiller.UserError, match="the label of item 9 of data is 'cat'; expected a whole number"):
        split_of(Words(), "data")
