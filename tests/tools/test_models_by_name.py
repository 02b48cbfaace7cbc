"""Models by name on the command line: trained, saved and evaluated; bad input is one line with status 2."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

from mdistiller.models import build_model
from tests.conftest import REPO

FILE = REPO / "tests/models/adapters/made_models.py"
DEIT = ("DISTILLER.TEACHER", "timm/deit_tiny_distilled_patch16_224", "DISTILLER.TEACHER_ARGS", "{depth: 1}")


@pytest.fixture
def settings(image_folder, tmp_path, registries_as_before):
    """`x.yaml`: from a teacher to a student, both of a user's own file in the working directory."""
    shutil.copy(FILE, tmp_path / "mine.py")
    torch.save(build_model("mine.py:Net", 3, "imagefolder", 16).state_dict(), tmp_path / "teacher.pth")
    (tmp_path / "x.yaml").write_text(
        f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: 16, NUM_WORKERS: 0, MEAN: [0.4, 0.4, 0.4],"
        " STD: [0.2, 0.2, 0.2]}\n"
        "DISTILLER: {TYPE: SFAKD, TEACHER: 'mine.py:Net', STUDENT: 'mine.py:Net', TEACHER_WEIGHTS: teacher.pth}\n"
        "SOLVER: {EPOCHS: 1, BATCH_SIZE: 8, LR: 0.02, LR_DECAY_STAGES: []}\nLOG: {WANDB: False}\n"
        "EXPERIMENT: {NAME: run}\n"
    )
    return tmp_path


def test_a_model_of_the_users_file(command, settings):
    student = ("DISTILLER.STUDENT_ARGS", "{width: 4}", "DISTILLER.TEACHER_INPUT", "{size: 24}")
    status, out, err = command("train", "--cfg", "x.yaml", *student)
    assert (status, err) == (0, "")
    assert "the student sees 16 px" in out
    assert "the teacher sees 24 px" in out
    status, out, err = command("eval", "-m", "mine.py:Net", "-c", "output/run/student_best.pth")
    assert (status, err) == (0, "")
    assert "deployed  top-1" in out
    # a file names no code to run
    status, out, err = command("eval", "-m", "resnet8", "-c", "output/run/student_best.pth")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"holds a {settings}/mine.py:Net, not a resnet8; give -m {settings}/mine.py:Net, or the name under" in err
    (settings / "mine.py").rename(settings / "moved.py")
    sys.modules.pop(next(name for name in sys.modules if name.startswith("mdistiller_user_mine")))
    status, _, err = command("eval", "-m", "mine.py:Net", "-c", "output/run/student_best.pth")
    assert (status, err.count("\n")) == (2, 1)
    assert "no file at mine.py" in err
    assert command("eval", "-m", "moved.py:Net", "-c", "output/run/student_best.pth")[0] == 0


def test_fine_tuning_in_one_command_makes_a_teacher(command, settings, caplog):
    """A user's module with a head for other classes, from the probe to a student of its own."""
    base, run = ("--cfg", REPO / "configs/imagefolder/finetune.yaml"), "output/images_finetune"
    data = ["DATASET.ROOT", "images", "DATASET.INPUT_SIZE", "24", "DATASET.NUM_WORKERS", "0", "LOG.WANDB", "False"]
    model = ("DISTILLER.STUDENT", "mine.py:ten_locked", "DISTILLER.STUDENT_WEIGHTS", "ten.pth")
    torch.save(build_model("mine.py:ten_locked", 10, "imagefolder", 24).state_dict(), "ten.pth")
    with caplog.at_level("INFO", "mdistiller"):
        status, out, _ = command("train", *base, *data, *model, "SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "8")
    assert status == 0
    assert "mine.py:ten_locked has 10 outputs; a new one of 3 replaces it" in caplog.text
    assert "note: the classifier head has 10 outputs in" in caplog.text
    assert "input: the student sees 24 px, mean " in out
    assert "probe: 36 features of 32 channels computed once, in " in out
    teacher = ("DISTILLER.TEACHER", "mine.py:ten_locked", "DISTILLER.TEACHER_WEIGHTS", f"{run}/student_best.pth")
    status, out, _ = command("train", "--cfg", "x.yaml", *teacher)
    assert status == 0
    assert "the teacher sees 24 px" in out
    status, out, _ = command("eval", "-m", "mine.py:ten_locked", "-c", f"{run}/student_best.pth")
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if "top-1" in line)
    assert lines["recorded"].startswith(lines["deployed"])


def test_a_resumed_run_finds_its_models(command, settings):
    assert command("train", "--cfg", "x.yaml")[0] == 0
    assert command("train", "--cfg", "x.yaml", "--resume")[0] == 0
    status, _, err = command("train", "--cfg", "x.yaml", "--resume", "DISTILLER.STUDENT_ARGS", "{width: 4}")
    assert (status, err.count("\n")) == (2, 1)
    assert "DISTILLER.STUDENT_ARGS was None, now {'width': 4}" in err
    assert command("train", "--cfg", "output/run/config.yaml", "--resume")[0] == 0


def test_a_model_of_timm(command, settings):
    pytest.importorskip("timm")
    name = "timm/vit_tiny_patch16_224"
    student = (
        "DISTILLER.STUDENT",
        name,
        "DISTILLER.STUDENT_ARGS",
        "{patch_size: 4, depth: 4, embed_dim: 32, num_heads: 2}",
    )
    status, _, err = command("train", "--cfg", "x.yaml", *student)
    assert (status, err) == (0, "")
    status, out, err = command("eval", "-m", name, "-c", "output/run/student_best.pth")
    assert (status, err) == (0, "")
    assert "deployed  top-1" in out


ALONE = ("DISTILLER.TYPE", "NONE")
BAD = [
    (("DISTILLER.STUDENT", "timm/resnet19"), "timm has no model 'resnet19'; did you mean"),
    (("DISTILLER.STUDENT", "torchvision/resnet19"), "torchvision has no classification model 'resnet19'; did you"),
    (("DISTILLER.STUDENT", "gone.py:Net"), "no file at gone.py"),
    (("DISTILLER.STUDENT", "mine.py:Gone"), "mine.py has no 'Gone'"),
    (("DISTILLER.STUDENT", "mine.py:number"), "is a int; expected a function or class"),
    (("DISTILLER.STUDENT", "gone_package:make"), "needs the module gone_package, which cannot be imported here"),
    (("DISTILLER.STUDENT", "mine.py:fails"), "RuntimeError: no such weights"),
    (
        ("DISTILLER.STUDENT", "mine.py"),
        "'mine.py' names no function; a model of your own is named path/to/file.py:make",
    ),
    (("DISTILLER.STUDENT", "mine.py:exits"), "mine.py:exits fails with num_classes=3 (SystemExit: 2"),
    (("DISTILLER.STUDENT", "mine.py:scripted"), "returns a TorchScript module; expected a torch.nn.Module in Python"),
    (("DISTILLER.STUDENT", "mine.py:frozen"), "mine.py:frozen has no parameter to train; set requires_grad"),
    (
        ("DISTILLER.STUDENT", "mine.py:ten_hidden"),
        "has 10 classes, the data set has 3, and its classifier cannot be rep",
    ),
    (("DISTILLER.STUDENT", "torchvision/squeezenet1_1"), "torchvision/squeezenet1_1 cannot take two images of 16 px"),
    ((*ALONE, "SOLVER.PROBE_EPOCHS", "5", "DISTILLER.STUDENT", "mine.py:Hidden"), "SOLVER.PROBE_EPOCHS trains the cla"),
    ((*ALONE, "SOLVER.BACKBONE_LR_FACTOR", "0.1", "DISTILLER.STUDENT", "mine.py:Hidden"), "needs a student with a cl"),
    (("SOLVER.PROBE_EPOCHS", "-1"), "SOLVER.PROBE_EPOCHS is -1; expected a number of passes from 0"),
    (("SOLVER.BACKBONE_LR_FACTOR", "0"), "SOLVER.BACKBONE_LR_FACTOR is 0.0; expected a number above 0 and up to 1"),
    (("DISTILLER.TEACHER", "mine.py:ten_classes"), "gives logits [2, 10] for two images; expected [2, 3]"),
    (
        ("DISTILLER.TEACHER_INPUT", "pretrained"),
        "DISTILLER.TEACHER_INPUT pretrained needs a model of a library or released weights, given",
    ),
    (("DISTILLER.TEACHER_CLASSES", "gone.txt"), "DISTILLER.TEACHER_CLASSES: no file at gone.txt"),
    (("DISTILLER.TEACHER_WEIGHTS", "mine.py"), "mine.py"),
    (("DISTILLER.STUDENT_FEATURES", "{stem: stem}"), "have stem: 'stem'; expected {classifier: NAME, final_map: NAME,"),
    (("DISTILLER.STUDENT", "mine.py:Hidden"), "gives no 'final_map'"),
    (("DISTILLER.STUDENT", "mine.py:Viewing"), "cannot take"),
    (("DISTILLER.STUDENT_ARGS", "{depth: 3}"), "'depth'"),
    (("DISTILLER.STUDENT_ARGS", "[3]"), "DISTILLER.STUDENT_ARGS is [3]; expected names and values"),
    (("DISTILLER.STUDENT_ARGS", "{num_classes: 3}"), "contain num_classes, which is always that of the data set"),
    (("DISTILLER.STUDENT_FEATURES", "{final_map: gone}"), "mine.py:Net: 'gone' is never called"),
    (("DISTILLER.STUDENT_FEATURES", "fc"), "DISTILLER.STUDENT_FEATURES is 'fc'; expected names and values"),
    (("DISTILLER.STUDENT_WEIGHTS", "gone.pth"), "DISTILLER.STUDENT_WEIGHTS: no checkpoint at gone.pth"),
    (("DISTILLER.STUDENT_WEIGHTS", "pretrained"), "no library that releases weights"),
    (("DISTILLER.TEACHER", "mine.py:Tokens"), "do not fit Tokens"),
    (("DISTILLER.TEACHER_INPUT", "{size: -3}"), "DISTILLER.TEACHER_INPUT is {'size': -3}; expected None, same"),
    (("DISTILLER.TEACHER_INPUT", "{size: 2}", "DISTILLER.TEACHER", "timm/vit_tiny_patch16_224"), "of 2 px"),
    (("DISTILLER.TYPE", "SIMKD", "SIMKD.PROJECTOR_RELU", "3"), "SIMKD.PROJECTOR_RELU is 3; expected True, False"),
    ((*DEIT, "DISTILLER.TEACHER_WEIGHTS", ""), "no weights are given for timm/deit_tiny_distilled_patch16_224"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_one_line(command, settings, changes, message):
    if "timm/" in str(changes):
        pytest.importorskip("timm")
    status, _, err = command("train", "--cfg", "x.yaml", *changes)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not (settings / "output").exists()
