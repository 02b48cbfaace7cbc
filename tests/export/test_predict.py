"""tools/predict.py: every form of a student says the same about pictures."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.dataset.images.decode import View
from mdistiller.export.opening import open_runner
from mdistiller.export.source import read_source, to_input, val_pixels


def predicted(command, *arguments):
    status, out, err = command("predict", *arguments, "--json")
    assert (status, err) == (0, "")
    return {entry["image"]: entry["predictions"] for entry in json.loads(out)}


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_an_export_says_what_its_checkpoint_says(command, exported, session_folder, form, request):
    if form == "onnx":
        request.getfixturevalue("onnx_libraries")
    export, pictures = exported(format=form).path, session_folder / "images" / "val"
    expected = predicted(command, "-c", session_folder / "SFAKD" / "student_best.pth", pictures)
    found = predicted(command, "-c", export, pictures)
    assert list(found) == list(expected) and len(found) == 18
    for image, guesses in expected.items():
        assert [guess["name"] for guess in found[image]] == [guess["name"] for guess in guesses]
        for one, other in zip(found[image], guesses):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)


def test_the_logits_are_those_of_validation(student_file, image_folder, command):
    source = read_source(student_file)
    number, batches = val_pixels(source)
    pixels, target = next(batches)
    assert number == 18 and target.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    picture = image_folder / "val" / "class_1" / "3.png"
    with Image.open(picture) as image:
        view = torch.from_numpy(np.array(View(16, margin=False)(image)))
    assert torch.equal(pixels[9], view)
    mean, std = (torch.tensor(source.checkpoint[key]).view(3, 1, 1) for key in ("mean", "std"))
    logits = source.student((to_input(pixels[9:10]) - mean) / std)
    guesses = predicted(command, "-c", student_file.parent, picture)[str(picture)]
    best = logits.softmax(1)[0].topk(3)
    assert [guess["index"] for guess in guesses] == best.indices.tolist()
    assert [guess["probability"] for guess in guesses] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [guess["name"] for guess in guesses] == [f"class_{index}" for index in best.indices.tolist()]


def test_pictures_of_any_kind_are_prepared_as_in_validation(command, student_file, tmp_path):
    Image.new("L", (40, 20), 99).save(tmp_path / "gray.png")
    picture = Image.new("RGB", (40, 20), (200, 30, 30))
    picture.paste((30, 30, 200), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    picture.rotate(-90, expand=True).save(tmp_path / "upright.jpg", quality=95)
    found = predicted(command, "-c", student_file, tmp_path / "turned.jpg", tmp_path / "upright.jpg", "gray.png")
    turned, upright, gray = (guesses[0]["probability"] for guesses in found.values())
    assert turned == pytest.approx(upright, abs=0.02) and gray > 0


def test_unreadable_pictures_are_named_and_the_others_done(command, student_file, image_folder, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    good = image_folder / "val" / "class_0" / "0.png"
    status, out, err = command(
        "predict",
        "-c",
        student_file,
        "-k",
        "2",
        "text.png",
        good,
        "gone.png",
        "empty",
        image_folder / "val" / "class_1",
    )
    assert status == 2
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        str(good), *(str(image_folder / "val" / "class_1" / f"{number}.png") for number in range(6))
    ]  # fmt: skip
    assert all(line.count(" %") == 2 for line in out.splitlines())
    lines = err.splitlines()
    assert len(lines) == 3 and "gone.png does not exist" in lines[0]
    assert "the folder empty holds no image" in lines[1] and "cannot read the image text.png" in lines[2]


def test_a_table_quotes_names(command, student_file, image_folder):
    content = torch.load(student_file, weights_only=True)
    content["classes"] = ['a "b", c', "b\nline", "ü"]
    torch.save(content, student_file)
    picture = image_folder / "val" / "class_0" / "0.png"
    status, out, _ = command("predict", "-c", student_file, "--csv", picture)
    rows = list(csv.reader(io.StringIO(out)))
    assert status == 0 and rows[0] == ["image", "rank", "class", "index", "probability"]
    assert sorted(row[2] for row in rows[1:]) == sorted(content["classes"])
    assert sum(float(row[4]) for row in rows[1:]) == pytest.approx(1, abs=1e-4)
    assert [row[1] for row in rows[1:]] == ["1", "2", "3"] and {row[0] for row in rows[1:]} == {str(picture)}


def test_a_run_folder_stands_for_its_best_student(student_file, tmp_path):
    assert open_runner(student_file.parent).path == student_file
