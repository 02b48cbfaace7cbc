"""Students that are code of the user's own: a file never chooses which code runs, the user names it."""

import os

import pytest
import torch

from mdistiller.export.export import export_student
from mdistiller.export.opening import open_runner
from mdistiller.export.options import Options
from tests.api.conftest import OwnNet

NAME = "tests.api.conftest:OwnNet"


@pytest.fixture
def own_file(student_file):
    content = torch.load(student_file, weights_only=True)
    torch.save({**content, "arch": NAME, "head": None, "model": OwnNet().eval().state_dict()}, student_file)
    return student_file


def test_a_hostile_checkpoint_runs_nothing(command, student_file, image_folder):
    content = torch.load(student_file, weights_only=True)
    for arch in ("os:system", "hostile.py:make"):
        with open("hostile.py", "w", encoding="utf-8") as file:
            file.write("open('hacked', 'w').close()\n")
        torch.save({**content, "arch": arch, "arguments": {"command": "touch hacked"}}, student_file)
        calls = (("predict", image_folder / "val"), ("export", "--format", "safetensors"))
        for tool, *arguments in calls:
            status, out, err = command(tool, "-c", student_file, *arguments)
            assert (status, out, len(err.splitlines())) == (2, "", 1), err
            assert f"holds {arch}, a model defined in custom code; if you trust that code, name it: -m NAME" in err
    assert not os.path.exists("hacked")


def test_named_code_is_predicted_with_and_exported(command, own_file, image_folder):
    picture = image_folder / "val" / "class_0" / "0.png"
    status, out, err = command("predict", "-c", own_file, "-m", NAME, picture)
    assert (status, err) == (0, "") and out.startswith(str(picture))
    status, out, err = command("export", "-c", own_file, "-m", NAME, "--format", "safetensors")
    assert (status, err) == (0, "") and "0 top-1 changed" in out
    export = own_file.parent / "export" / "safetensors" / "student.safetensors"
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    runs = [open_runner(path, model=NAME).run(pixels) for path in (own_file, export)]
    assert torch.equal(*runs)


def test_the_name_must_fit(command, student_file, own_file, image_folder):
    status, _, err = command("predict", "-c", own_file, "-m", "resnet8", image_folder)
    assert status == 2 and f"holds a {NAME}, not a resnet8; give -m {NAME}" in err
    with pytest.raises(ValueError, match="tests.api.conftest has no 'Gone'"):
        export_student(own_file, Options(format="safetensors", model="tests.api.conftest:Gone"))
