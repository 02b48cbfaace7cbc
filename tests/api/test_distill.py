"""Training from Python: the engine of the command line, whatever form models and data have."""

from __future__ import annotations

import copy
import os
import re
import signal

import pytest
import torch
from torch.utils.data import Subset

import mdistiller
from mdistiller.api.options import OPTIONS
from mdistiller.dataset import DatasetInfo
from mdistiller.engine.cfg import CFG, leaves
from mdistiller.engine.trainer import Trainer
from mdistiller.models import build_model
from tests.api.conftest import SIZE, OwnNet, Pictures
from tests.conftest import REPO

NAMES = ["class_0", "class_1", "class_2"]


def weights(result, last=True):
    return result.load(last).network.state_dict()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture
def teacher(image_folder, quick):
    """A module that was trained for an epoch, as `load` returns it."""
    return mdistiller.distill(OwnNet(16), None, image_folder, method="NONE", output="out/teacher", **quick).load()


def test_names_and_a_folder_give_the_run_of_the_command_line(command, image_folder, quick):
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    data = f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: {SIZE}, NUM_WORKERS: 0}}\n"
    (image_folder.parent / "run.yaml").write_text(
        f"{data}SOLVER: {{EPOCHS: 1, BATCH_SIZE: 8, LR: 0.05, AMP: 'off', SCHEDULE: cosine}}\nLOG: {{WANDB: false}}\n"
        "DISTILLER: {TYPE: SFAKD, TEACHER: resnet14, TEACHER_WEIGHTS: teacher.pth, STUDENT: resnet8}\n"
        "SFAKD: {SIGMA: 0.2}\nEXPERIMENT: {NAME: cli}\n"
    )
    assert command("train", "--cfg", "run.yaml")[0] == 0
    given = {"teacher_weights": "teacher.pth", "settings": {"SFAKD.SIGMA": 0.2}, **quick}
    result = mdistiller.distill("resnet8", "resnet14", image_folder, output="output/api", **given)
    expected = torch.load("output/cli/student_latest.pth", weights_only=True)
    found = torch.load("output/api/student_latest.pth", weights_only=True)
    assert_equal(found["model"], expected["model"])
    assert_equal(found["head"]["state"], expected["head"]["state"])
    assert found["accuracy"] == expected["accuracy"]
    assert result.summary["settings"]["SFAKD.SIGMA"] == 0.2
    for student in ("output/api", result.student):  # the folder of the run, or the file
        status, out, err = command("eval", "-m", "resnet8", "-c", student, "--no-speed")
        assert (status, err) == (0, "") and f"deployed  top-1 {result.summary['best']['deployed_top1']:.2f}" in out


def test_folders_and_data_sets_of_the_same_images_give_the_same_student(image_folder, teacher, quick):
    train, val = Pictures(image_folder / "train"), Pictures(image_folder / "val")
    as_tensors = Pictures(image_folder / "train", lambda image: torch.tensor(image).permute(2, 0, 1) / 255)
    whole = Subset(as_tensors, range(len(as_tensors)))
    forms = {
        "root": (image_folder, None),
        "folders": (str(image_folder / "train"), image_folder / "val"),
        "arrays": (train, val),
        "tensors": (whole, list(val)),
        "mixed": (image_folder / "train", val),
    }
    student = OwnNet()
    results = {
        name: mdistiller.distill(student, teacher, *data, output=f"out/{name}", **quick) for name, data in forms.items()
    }
    expected = weights(results["root"])
    for result in results.values():
        assert_equal(weights(result), expected)
        assert list(result.load().classes) == NAMES  # those of the teacher, where the data do not say them
    assert results["folders"].summary["dataset"] == "imagefolder" and results["arrays"].summary["dataset"] == "python"


def test_what_is_given_is_not_changed_and_training_starts_from_it(image_folder, quick):
    student, teacher = OwnNet().train(), OwnNet(16).train()
    before = copy.deepcopy([student.state_dict(), teacher.state_dict()])
    with torch.no_grad():
        student.fc.bias.fill_(7.0)
    before[0]["fc.bias"].fill_(7.0)
    result = mdistiller.distill(student, teacher, image_folder, method="KD", output="out/kd", **{**quick, "lr": 1e-9})
    for model, state in zip((student, teacher), before):
        assert_equal(model.state_dict(), state)
        assert type(model) is OwnNet and model.training and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(weights(result)["backbone.fc.bias"], before[0]["fc.bias"])
    assert result.summary["student"] == "python:student.OwnNet"
    assert result.summary["teacher"] == "python:teacher.OwnNet"


def test_a_student_with_other_classes_gets_a_new_classifier(image_folder, quick, caplog):
    given = OwnNet(num_classes=5)
    with caplog.at_level("INFO"):
        result = mdistiller.distill(given, None, image_folder, method="NONE", output="out/new", **quick)
    assert "has 5 outputs; a new one of 3 replaces it" in caplog.text
    picture = next(image_folder.glob("val/*/*.png"))
    for student in (result.load(), mdistiller.load(result.student, model=given)):
        assert student.classes == ("class_0", "class_1", "class_2")
        assert sum(guess.probability for guess in student.predict(picture)) == pytest.approx(1)
    assert given.fc.out_features == 5


def test_a_stopped_run_resumes_to_the_same_student(image_folder, teacher, quick):
    student = OwnNet()
    quick["epochs"] = 2
    whole = mdistiller.distill(student, teacher, image_folder, output="out/whole", **quick)
    original = Trainer.save

    def save_and_stop(self):
        original(self)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt, match="continue with resume=True"):
            mdistiller.distill(student, teacher, image_folder, output="out/part", **quick)
    part = mdistiller.distill(student, teacher, image_folder, output="out/part", resume=True, **quick)
    assert_equal(weights(part), weights(whole))
    assert [row["epoch"] for row in part.history] == [1, 2]
    assert [row["loss"] for row in part.history] == [row["loss"] for row in whole.history]


def test_settings_may_be_sections(image_folder, quick):
    given = {"SOLVER": {"LR": 0.03}, "DATASET": {"TRAIN_FRACTION": 0.5, "MEAN": [0.1, 0.2, 0.3], "STD": [1, 1, 1]}}
    before = copy.deepcopy(given)
    lr = quick.pop("lr", None)
    result = mdistiller.distill("resnet8", None, image_folder, method="NONE", output="out/s", settings=given, **quick)
    found = result.summary["settings"]
    assert (found["SOLVER.LR"], found["DATASET.TRAIN_FRACTION"], found["SOLVER.EPOCHS"]) == (0.03, 0.5, quick["epochs"])
    assert given == before and lr != 0.03


def test_a_loaded_teacher_sees_its_own_images(image_folder, quick):
    mean, std = [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]
    trained = mdistiller.distill(
        OwnNet(), None, image_folder, method="NONE", output="out/t", mean=mean, std=std, **quick
    )
    result = mdistiller.distill(OwnNet(), trained.load(), image_folder, output="out/s", method="KD", **quick)
    assert result.summary["teacher_accuracy"]["deployed_top1"] == trained.summary["best"]["deployed_top1"]
    seen = result.summary["settings"]["DISTILLER.TEACHER_INPUT"]
    assert (seen["mean"], seen["std"]) == (mean, std)


def test_a_loaded_student_is_trained_on(image_folder, teacher, quick):
    quick.pop("input_size")
    result = mdistiller.distill(teacher, None, image_folder, method="NONE", output="out/more", mean=[0.5] * 3, **quick)
    assert result.summary["settings"]["DATASET.INPUT_SIZE"] == SIZE
    before, after = teacher.network.backbone.state_dict(), result.load().network.backbone.state_dict()
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_model_is_told_from_a_folder_of_its_name(image_folder, quick):
    first = mdistiller.distill("resnet8", None, image_folder, method="NONE", output="resnet8", **quick)
    again = mdistiller.distill("resnet8", None, image_folder, method="NONE", output="out/fresh", **quick)
    assert again.summary["last"] == first.summary["last"], "from the same fresh weights"
    more = mdistiller.distill("./resnet8", None, image_folder, method="NONE", output="out/more", **quick)
    assert more.history[0]["loss"] != first.history[0]["loss"]


def test_a_student_named_by_its_code_is_loaded(image_folder, quick):
    (image_folder.parent / "net.py").write_text("from tests.api.conftest import OwnNet\n\nmake = OwnNet\n")
    result = mdistiller.distill("net.py:make", None, image_folder, method="NONE", output="out/own", **quick)
    assert len(result.load().classes) == 3


def test_a_checkpoint_is_a_teacher(image_folder, quick):
    teacher = mdistiller.distill("resnet8", None, image_folder, method="NONE", output="out/t", **quick)
    for number, form in enumerate((teacher.student, str(teacher.student), teacher.folder)):
        result = mdistiller.distill("resnet8", form, image_folder, method="KD", output=f"out/{number}", **quick)
        assert result.summary["teacher"] == "resnet8"
        assert result.summary["teacher_accuracy"]["deployed_top1"] == teacher.summary["best"]["deployed_top1"]


def test_large_images_are_streamed(image_folder, teacher, quick):
    pictures = Pictures(image_folder / "train"), Pictures(image_folder / "val")
    settings = {"DATASET.IN_MEMORY": "no"}
    streamed = mdistiller.distill(OwnNet(), teacher, *pictures, output="out/s", settings=settings, **quick)
    torch.manual_seed(0)
    assert streamed.history[0]["loss"] > 0
    resumed = mdistiller.distill(
        OwnNet(), teacher, *pictures, output="out/s", settings=settings, resume=True, **{**quick, "epochs": 2}
    )
    assert len(resumed.history) == 2
    assert resumed.summary["origin"]["train_content"].startswith("sampled pixels")


def test_class_names_of_a_dataset(image_folder, quick):
    pictures = Pictures(image_folder / "train"), Pictures(image_folder / "val")
    for part in pictures:
        part.classes = ["a", "b", "c"]
    result = mdistiller.distill(OwnNet(), None, *pictures, method="NONE", output="out/a", **quick)
    assert result.load().classes == ("a", "b", "c")
    result = mdistiller.distill(
        OwnNet(), None, *pictures, method="NONE", output="out/b", classes=["x", "y", "z"], **quick
    )
    assert result.load().classes == ("x", "y", "z")
    assert isinstance(result.load().source.info, DatasetInfo)


def test_the_command_line_refuses_a_run_of_objects(command, image_folder, quick):
    pictures = Pictures(image_folder / "train"), Pictures(image_folder / "val")
    run = mdistiller.distill(OwnNet(), None, *pictures, method="NONE", output="out/objects", **quick)
    status, _, err = command("train", "--cfg", run.folder / "config.yaml", "EXPERIMENT.NAME", "again")
    assert status == 2 and "the model python:student.OwnNet was given as an object in Python" in err
    code = ["-m", "tests.api.conftest:OwnNet", "-c", run.student, "--no-speed"]
    status, _, err = command("eval", *code)
    assert status == 2 and "data that were given in Python" in err
    status, _, err = command("eval", *code, "-d", "imagefolder", "DATASET.ROOT", image_folder)
    assert status == 2 and "knows class 0 as '0'" in err  # the labels had no names
    found = mdistiller.evaluate(run.load(), pictures[1])
    assert found["top1"] == run.summary["best"]["deployed_top1"]


@pytest.mark.usefixtures("registries_as_before")
def test_a_plug_in(image_folder, quick):
    with open("mine.py", "w", encoding="utf-8") as file:
        file.write(
            "from mdistiller.distillers import register\nfrom mdistiller.distillers.KD import KD\n\n"
            "@register('MINE')\nclass Mine(KD):\n    pass\n"
        )
    models = OwnNet(), OwnNet(16)
    settings = {"PLUGINS": ["mine.py"]}
    mine = mdistiller.distill(*models, image_folder, method="MINE", output="out/mine", settings=settings, **quick)
    kd = mdistiller.distill(*models, image_folder, method="KD", output="out/kd", **quick)
    assert_equal(weights(mine), weights(kd))


def test_the_docs_name_every_option():
    table = re.findall(r"`(\w+)` \| `([A-Z_.]+)`", (REPO / "docs/python.md").read_text(encoding="utf-8"))
    assert dict(table) == OPTIONS and len(table) == len(OPTIONS)
    assert set(OPTIONS.values()) <= dict(leaves(CFG)).keys()
