"""tools/eval.py: what a student costs, accuracy by class, and other splits than the validation images."""

import csv
import re
import shutil

import pytest
import torch

from mdistiller.distillers import DeployedStudent
from mdistiller.engine import checkpoint as ck
from mdistiller.engine.evaluation import cost_report
from mdistiller.engine.evaluation.confusion import Confusion
from mdistiller.engine.evaluation.evaluate import count_correct
from mdistiller.models import build_model
from tests.export.conftest import build_student, describe


@pytest.fixture
def student_file(tmp_path, image_folder):
    ck.save(describe(build_student("SFAKD"), image_folder), tmp_path / "student.pth")
    return tmp_path / "student.pth"


def evaluated(command, *arguments):
    status, out, err = command("eval", "-m", "resnet8", "-c", "student.pth", *arguments)
    assert (status, err) == (0, "")
    return out


def number(text):
    return int(text.replace(",", ""))


def test_the_checkpoint_names_its_model(command, student_file):
    status, out, err = command("eval", "-c", "student.pth", "--no-speed")
    assert (status, err, out) == (0, "", evaluated(command, "--no-speed"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to evaluate; give a checkpoint or the folder of a run (-c), or a released teacher (-m)"),
        (("-c", "weights.pth"), "weights.pth holds weights alone and names no model; give its name"),
        (("-c", "own.pth"), "own.pth holds own.py:make, a model defined in custom code; if you trust that code, name"),
    ],
)
def test_a_model_that_must_be_named(command, student_file, tmp_path, arguments, message):
    torch.save({"model": build_model("resnet8", 3).state_dict()}, tmp_path / "weights.pth")
    torch.save({**torch.load(student_file), "arch": "own.py:make"}, tmp_path / "own.pth")
    (tmp_path / "own.py").write_text("raise SystemExit('this must not run')")
    status, out, err = command("eval", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_cost_of_student_and_teacher(command, student_file):
    out = evaluated(command, "--no-speed")
    found = re.search(
        r"^cost +([\d,]+) parameters, ([\d,]+) MACs an image; head ([\d,]+) \(([\d.]+) %\), ([\d,]+) \(([\d.]+) %\);"
        rf" {student_file.stat().st_size / 2**20:.2f} MiB on disk$",
        out,
        flags=re.M,
    )
    parameters, macs, head_parameters, head_share, head_macs, _ = found.groups()
    student = build_student("SFAKD")
    assert number(head_parameters) == sum(p.numel() for p in student.head.parameters())
    own_classifier = sum(p.numel() for p in student.backbone.get_classifier().parameters())
    every = sum(p.numel() for p in student.parameters())
    assert number(parameters) == every - own_classifier  # the head replaces it
    assert float(head_share) == pytest.approx(100 * number(head_parameters) / number(parameters), abs=0.05)
    assert 0 < number(head_macs) < number(macs)

    teacher = sum(p.numel() for p in build_model("resnet14", 3).parameters())
    assert re.search(rf"^teacher +resnet14: {teacher:,} parameters, [\d,]+ MACs an image$", out, flags=re.M)
    assert "images/s" not in out
    given = evaluated(command, "--no-speed", "DISTILLER.TEACHER", "resnet20", "DISTILLER.TEACHER_WEIGHTS", student_file)
    size = f"{student_file.stat().st_size / 2**20:.2f}"
    assert re.search(rf"^teacher +resnet20: .*; {size} MiB on disk$", given, flags=re.M)


def test_the_teacher_is_measured_at_the_size_that_it_sees(command, student_file):
    def macs(*keys):
        out = evaluated(command, "--no-speed", "DISTILLER.TEACHER", "torchvision/resnet18", *keys)
        return number(re.search(r"^teacher .* ([\d,]+) MACs", out, flags=re.M)[1])

    at_224 = macs("DISTILLER.TEACHER_INPUT", "{size: 224}")
    assert macs("DISTILLER.TEACHER_INPUT", "pretrained") == macs("DISTILLER.TEACHER_WEIGHTS", "pretrained") == at_224
    assert macs("DISTILLER.TEACHER_INPUT", "same") < at_224 / 100


def test_a_released_teacher_is_measured_at_the_size_that_it_was_trained_on():
    section = {"TYPE": "KD", "TEACHER": "resnet20"}
    small, large = (cost_report.teacher_lines(section, True, "cifar100", 100, size, False) for size in (32, 64))
    assert small == large
    assert cost_report.teacher_lines(section, True, "imagefolder", 100, 64, False) != small


def test_speed_is_measured_unless_it_is_switched_off(command, student_file):
    out = evaluated(command)
    speeds = re.findall(
        r"batch 1: ([\d,.]+) images/s, batch 64: ([\d,.]+) images/s \(PyTorch, float32, CPU, \d+ thr", out
    )
    assert len(speeds) == 2  # student and teacher
    assert all(float(value.replace(",", "")) > 0 for pair in speeds for value in pair)


def test_a_slow_batch_is_left_out(monkeypatch):
    monkeypatch.setattr(cost_report, "MAX_SECONDS", 0.0)
    text = cost_report.speed_text(build_model("resnet8", 3).eval(), None, 16)
    assert re.match(r"batch 1: [\d,.]+ images/s, batch 64 takes too long to measure", text)


def test_a_teacher_of_somebodys_own_code_is_not_started(command, student_file):
    content = torch.load(student_file, weights_only=True)
    content["config"]["DISTILLER"].update({"TEACHER": "os:system", "TEACHER_ARGS": {"command": "touch hacked"}})
    torch.save(content, student_file)
    assert "teacher" not in evaluated(command, "--no-speed")
    for given, fault in ((None, "unknown CIFAR model 'resnet9'"), ("x", "DISTILLER.TEACHER_INPUT is 'x'; expected")):
        content["config"]["DISTILLER"].update({"TEACHER": "resnet9", "TEACHER_ARGS": 3, "TEACHER_INPUT": given})
        torch.save(content, student_file)
        assert f"note: the cost of the teacher is not known here: {fault}" in evaluated(command, "--no-speed")


def test_accuracy_by_class(command, student_file):
    before = evaluated(command, "--no-speed")
    assert evaluated(command, "--no-speed", "--per-class", "classes.csv") == before
    with open("classes.csv", encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    names = ["class_0", "class_1", "class_2"]
    assert header == ["class", "images", "top1", *(f"taken for {name}" for name in names)]
    assert [row[0] for row in rows] == names
    counts = [[int(cell) for cell in row[3:]] for row in rows]
    assert [int(row[1]) for row in rows] == [sum(row) for row in counts] == [6, 6, 6]
    assert [float(row[2]) for row in rows] == [round(100 * row[i] / 6, 2) for i, row in enumerate(counts)]
    top1 = 100 * sum(row[i] for i, row in enumerate(counts)) / 18
    assert f"deployed  top-1 {top1:.2f} " in before


def test_confusion_counts_as_top1_does_where_logits_are_equal():
    logits, target = torch.zeros(8, 4), torch.arange(8) % 4
    logits[:4, 3] = 1.0
    confusion = Confusion(4)
    confusion.add(logits, target)
    assert int(confusion.counts.diag().sum()) == int(count_correct(logits, target)[0])
    assert int(confusion.counts.sum()) == 8
    assert confusion.per_class() == [100.0 * int(row[i]) / 2 for i, row in enumerate(confusion.counts)]


def test_another_split(command, student_file, image_folder):
    shutil.copytree(image_folder / "train", image_folder / "test")
    shutil.rmtree(image_folder / "test" / "class_0")
    shutil.copytree(image_folder / "val" / "class_0", image_folder / "test" / "class_0")
    train, test = (evaluated(command, "--no-speed", "--split", name) for name in ("train", "test"))
    assert "data      imagefolder, 36 training images, 3 classes" in train
    assert "data      imagefolder, 30 test images, 3 classes" in test
    assert evaluated(command, "--split", "val", "--no-speed") == evaluated(command, "--no-speed")
    shutil.rmtree(image_folder / "train")  # the checkpoint knows mean and std
    shutil.rmtree(image_folder / "val")
    assert evaluated(command, "--no-speed", "--split", "test") == test


def test_accuracy_of_a_split(command, student_file, image_folder):
    student = build_student("SFAKD")
    assert isinstance(student, DeployedStudent)
    shutil.copytree(image_folder / "val", image_folder / "test")
    lines = [
        [line for line in evaluated(command, "--no-speed", *split).splitlines() if "top-1" in line]
        for split in ((), ("--split", "test"))
    ]
    assert lines[0] == lines[1]


BAD = [
    (("--split", "gone"), "--split gone: there is no such folder in .*images, which holds flat, hollow, .*; give one"),
    (("--split", "../images"), "--split ../images: there is no such folder"),
    (("--split", ""), "--split : there is no such folder"),
    (("--split", "test"), "--split test lacks the classes class_2, unlike train/ in .*images; give both the same"),
    (("--split", "test", "-d", "fashion_demo"), "--split test needs DATASET.TYPE imagefolder, given fashion_demo"),
    (("--split", "test", "-d", "imagefold"), "unknown data set 'imagefold'; did you mean imagefolder"),
    (("-d", "python"), "DATASET.TYPE python stands for data that were given in Python .*; give a data set: -d image"),
    (("--split", "more"), "--split more has the classes class_3, unlike train/ in"),
    (("--split", "flat"), "flat holds no class folders; expected .*flat/<class>/<image>"),
    (("--split", "hollow"), "the class folders class_0, class_1, class_2 of .*hollow hold no image"),
    (
        ("--split", "test", "DATASET.ROOT", "gone"),
        "--split test needs DATASET.ROOT, the folder that holds test/",
    ),
    (("--per-class", "gone/classes.csv"), "--per-class gone/classes.csv: the folder gone does not exist"),
    (("--per-class", "images"), "--per-class images is a folder; give the name of a file"),
    (("DISTILLER.TEACHER", "resnet9"), "unknown CIFAR model 'resnet9'; did you mean"),
    (("DISTILLER.TEACHER", "gone.py:make"), "no file at gone.py"),
    (("--no-sped",), "unrecognized arguments: --no-sped"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments(command, student_file, image_folder, arguments, message):
    for name, classes in (("test", (0, 1)), ("more", (0, 1, 2, 3))):
        for label in classes:
            shutil.copytree(image_folder / "val" / "class_0", image_folder / name / f"class_{label}")
    for label in range(3):
        (image_folder / "hollow" / f"class_{label}").mkdir(parents=True)
    (image_folder / "flat").mkdir()
    status, out, err = command("eval", "-m", "resnet8", "-c", "student.pth", *arguments)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert re.search(message, err), err
    assert "top-1" not in out
