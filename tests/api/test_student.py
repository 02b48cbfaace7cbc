"""A loaded student says what the command lines say, whatever form an image has."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import mdistiller
from mdistiller.engine import checkpoint as ck
from mdistiller.export.export import Options, export_student
from mdistiller.export.source import read_source, val_pixels
from mdistiller.models import build_model
from tests.api.conftest import SIZE, OwnNet
from tests.export.conftest import build_student, describe
from tests.processes import run_python


@pytest.fixture
def student_file(tmp_path, image_folder):
    path = tmp_path / "run" / "student_best.pth"
    path.parent.mkdir()
    ck.save(describe(build_student("SFAKD"), image_folder), path)
    return path


@pytest.fixture
def student(student_file):
    return mdistiller.load(student_file)


def test_importing_the_package_imports_no_torch():
    code = "import sys, mdistiller; print('torch' in sys.modules, 'numpy' in sys.modules, mdistiller.__version__)"
    status, out, err = run_python("-c", code)
    assert (status, out, err) == (0, f"False False {mdistiller.__version__}\n", "")
    assert {*mdistiller.__all__, "__version__"} <= set(dir(mdistiller))
    with pytest.raises(AttributeError, match="has no attribute 'gone'"):
        mdistiller.gone  # noqa: B018


def test_pictures_are_classified_as_by_the_command_line(command, student, student_file, image_folder):
    files = sorted((image_folder / "val").rglob("*.png"))
    status, out, err = command("predict", "-c", student_file, "--json", *files)
    expected = [entry["predictions"] for entry in json.loads(out)]
    found = student.predict(files)
    assert (status, err) == (0, "")
    assert [[vars(guess) for guess in guesses] for guesses in found] == expected
    assert student.predict(str(files[3])) == student.predict([files[3]])[0]


def test_an_image_in_any_form_is_the_same_image(student, image_folder):
    file = image_folder / "val" / "class_1" / "2.png"
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    pixels = np.asarray(picture)
    tensor = torch.tensor(pixels).permute(2, 0, 1)
    expected = student.predict(file, k=2)
    assert len(expected) == 2 and isinstance(expected[0], mdistiller.Guess)
    for form in (picture, pixels, pixels / 255, pixels.astype(np.float32) / 255, tensor, tensor / 255):
        assert student.predict(form, k=2) == expected
    forms = [file, picture, pixels, tensor]
    for several in (forms, tuple(forms), np.stack([pixels] * 4), torch.stack([tensor] * 4)):
        found = student.predict(several, k=2)
        assert [[guess.name for guess in guesses] for guesses in found] == [[guess.name for guess in expected]] * 4
        for guesses in found:  # a batch is rounded otherwise than an image
            for one, other in zip(guesses, expected):
                assert one.probability == pytest.approx(other.probability, abs=1e-5)
    gray = pixels[..., 0]
    as_tensor = torch.tensor(gray)
    assert student.predict(gray) == student.predict(gray[..., None]) == student.predict(as_tensor[None])
    assert student.predict([]) == []


def test_the_module_takes_what_transform_makes(student, student_file):
    number, batches = val_pixels(read_source(student_file))
    pixels, _ = next(batches)
    images = torch.stack([student.transform(image.numpy()) for image in pixels])
    assert images.shape == (number, 3, SIZE, SIZE) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    source = read_source(student_file)
    mean, std = (torch.tensor(source.checkpoint[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(student(images), source.student((images - mean) / std), atol=1e-4, rtol=1e-4)
    large = Image.new("RGB", (50, 30), (9, 99, 200))
    assert student.transform(large).shape == (3, SIZE, SIZE)
    assert student.double()(images.double()).dtype == torch.float64


def test_its_card_describes_it(student):
    assert student.classes == ("class_0", "class_1", "class_2") and student.input_size == SIZE
    assert "An image classifier: resnet8 with the SFAKD head" in student.card
    assert "top-1 41.50 %" in student.card and "class_0, class_1, class_2" in student.card
    assert not student.training and not any(p.requires_grad for p in student.parameters())


def test_a_safetensors_export_and_a_folder_are_loaded(student, student_file):
    image = torch.rand(2, 3, SIZE, SIZE)
    export = export_student(student_file, Options(format="safetensors")).path
    for path in (export, student_file.parent, str(student_file)):
        assert torch.equal(mdistiller.load(path)(image), student(image))


def test_a_student_of_your_own_code_needs_its_code(student_file, image_folder):
    content = torch.load(student_file, weights_only=True)
    own = OwnNet().eval()
    changed = {**content, "head": None, "model": own.state_dict(), "arch": "python:student.OwnNet"}
    torch.save(changed, "own.pth")
    mean, std = (torch.tensor(content[key]).view(3, 1, 1) for key in ("mean", "std"))
    image = torch.rand(2, 3, SIZE, SIZE)
    found = mdistiller.load("own.pth", model=OwnNet())(image)
    torch.testing.assert_close(found, own((image - mean) / std))
    torch.testing.assert_close(mdistiller.load("own.pth", model="tests.api.conftest:OwnNet")(image), found)
    with pytest.raises(mdistiller.UserError, match=r"given as an object in Python.*load\(path, model=...\)"):
        mdistiller.load("own.pth")
    with pytest.raises(mdistiller.UserError, match="own.pth .*fit|shape|size"):
        mdistiller.load("own.pth", model=OwnNet(width=4))
    with pytest.raises(mdistiller.UserError, match="holds a resnet8, not a python:student.OwnNet"):
        mdistiller.load(student_file, model=OwnNet())
    zoo = mdistiller.load(student_file, model="resnet8")
    assert isinstance(zoo.network.backbone, type(build_model("resnet8", 3)))
