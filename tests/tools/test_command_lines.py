"""The command lines as a user meets them: good runs, and one line with status 2 for everything else."""

import os
import pickle
import re

import pytest
import torch

from mdistiller.models import build_model
from tests.conftest import REPO, make_image_folder
from tests.processes import run_python


@pytest.fixture
def trained(command, image_folder, tmp_path):
    """A teacher, a configuration for SFAKD on its images, and the arguments of a run."""
    (tmp_path / "base.yaml").write_text(
        f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: 16, NUM_WORKERS: 0}}\n"
        "SOLVER: {EPOCHS: 2, BATCH_SIZE: 8, LR: 0.05, LR_DECAY_STAGES: []}\n"
    )
    (tmp_path / "teacher.yaml").write_text("_BASE_: base.yaml\nDISTILLER: {STUDENT: resnet14}\nEXPERIMENT: {NAME: t}\n")
    (tmp_path / "sfakd.yaml").write_text(
        "_BASE_: base.yaml\nEXPERIMENT: {NAME: s}\n"
        "DISTILLER: {TYPE: SFAKD, TEACHER: resnet14, STUDENT: resnet8, TEACHER_WEIGHTS: output/t/student_latest.pth}\n"
    )
    status, out, err = command("train", "--cfg", "teacher.yaml")
    assert (status, err) == (0, "")
    assert re.search(r"done: last top-1 [\d.]+ top-5 [\d.]+ \| best .*no teacher \| \d+ images/s", out)
    return tmp_path


def test_train_then_eval_without_the_teacher(command, trained):
    status, out, _ = command("train", "--cfg", "sfakd.yaml")
    assert status == 0
    best = re.search(r"best top-1 ([\d.]+) top-5 ([\d.]+)", out)
    assert re.search(r"teacher top-1 [\d.]+", out)
    os.rename("output/t", "moved_away")
    os.rename(trained / "images/train", trained / "moved_images")  # the checkpoint knows mean and std
    status, out, err = command("eval", "-m", "resnet8", "-c", "output/s/student_best.pth")
    assert (status, err) == (0, "")
    assert f"deployed  top-1 {best[1]}  top-5 {best[2]}" in out
    assert f"recorded  top-1 {best[1]}  top-5 {best[2]}" in out
    assert "SFAKD head" in out
    assert "probe     top-1" in out


def test_batch_size_of_eval_does_not_change_the_result(command, trained):
    results = set()
    for size in (1, 5, 100):
        _, out, _ = command("eval", "-m", "resnet14", "-c", "output/t/student_latest.pth", "-bs", size)
        results.add(re.search(r"deployed .*", out)[0])
    assert len(results) == 1


def test_options_may_stand_before_and_after_overrides(command, trained):
    arguments = "--cfg teacher.yaml EXPERIMENT.NAME u -d imagefolder SOLVER.EPOCHS 1 --overwrite"
    assert command("train", *arguments.split())[0] == 0
    assert (trained / "output/u/student_best.pth").is_file()
    assert command("train", "-d", "imagefolder", "EXPERIMENT.NAME", "v", "--cfg", "teacher.yaml")[0] == 0


def test_resume_and_overwrite(command, trained):
    status, _, err = command("train", "--cfg", "teacher.yaml")
    assert status == 2
    assert "already holds a run; continue it with --resume, replace it with --overwrite" in err
    status, out, _ = command("train", "--cfg", "teacher.yaml", "--resume", "SOLVER.EPOCHS", "3")
    assert status == 0
    assert "resumed after epoch 2 of 3" in out


TRAIN = ("train", "--cfg", "sfakd.yaml")
EVAL = ("eval", "-m", "resnet14", "-c")
CKPT = "output/t/student_latest.pth"
BAD = [
    ((*TRAIN, "DISTILLER.STUDENT", "resnet9"), "unknown CIFAR model 'resnet9'; did you mean"),
    ((*TRAIN, "DISTILLER.TEACHER", "wrn402"), "unknown CIFAR model 'wrn402'; did you mean .*wrn_40_2"),
    ((*TRAIN, "DISTILLER.TYPE", "SFAK"), "unknown distiller 'SFAK'; did you mean SFAKD"),
    ((*TRAIN, "SOLVER.TRAINER", "bass"), "unknown trainer 'bass'; did you mean base"),
    ((*TRAIN, "-d", "cifar1000"), "unknown data set 'cifar1000'; did you mean cifar100"),
    ((*TRAIN, "SOLVER.LRR", "1"), "unknown config key SOLVER.LRR in the command line; did you mean SOLVER.LR"),
    ((*TRAIN, "SOLVER.LR"), "override 'SOLVER.LR' has no value; expected KEY VALUE pairs"),
    ((*TRAIN, "SOLVER.LR", "-d", "cifar100"), "override 'SOLVER.LR' has no value; expected KEY VALUE pairs"),
    ((*TRAIN, "SOLVER.LR", "fast"), "SOLVER.LR in the command line is 'fast'; expected a number"),
    ((*TRAIN, "SOLVER.EPOCHS", "many"), "SOLVER.EPOCHS in the command line is 'many'; expected a whole number"),
    ((*TRAIN, "SOLVER.AMP", "half"), "SOLVER.AMP is 'half'; expected one of"),
    ((*TRAIN, "DATASET.TRAIN_FRACTION", "0"), "DATASET.TRAIN_FRACTION is 0"),
    ((*TRAIN, "DATASET.INPUT_SIZE", "abc"), "DATASET.INPUT_SIZE is 'abc'"),
    ((*TRAIN, "SFAKD.SIGMA", "-1"), "SFAKD.SIGMA is -1.0; expected a number above 0"),
    ((*TRAIN, "DISTILLER.TEACHER_WEIGHTS", "gone.pth"), "no checkpoint at gone.pth"),
    ((*TRAIN, "DISTILLER.TEACHER_WEIGHTS", ""), "no checkpoint of resnet14 is released for imagefolder; train one"),
    (
        (*TRAIN, "DISTILLER.TEACHER_WEIGHTS", "", "DISTILLER.TEACHER", "resnet56"),
        "no checkpoint of resnet56 is released for imagefolder; train one",
    ),
    ((*TRAIN, "DISTILLER.TEACHER", "resnet20"), "DISTILLER.TEACHER is resnet20, but .* holds a resnet14"),
    ((*TRAIN, "DATASET.ROOT", "gone"), "gone"),
    ((*TRAIN, "DATASET.ROOT", "four"), "trained on 3 classes, the data set imagefolder has 4"),
    ((*TRAIN, "DATASET.ROOT", "renamed"), "knows class 0 as 'class_0', in the data set imagefolder it is 'other_0'"),
    ((*TRAIN, "EXPERIMENT.REFERENCE", "[gone.json]"), "EXPERIMENT.REFERENCE gone.json is not the summary.json"),
    (("train", "--cfg", "sfak.yaml"), "config sfak.yaml cannot be read .*did you mean sfakd.yaml"),
    (("train",), "the following arguments are required: --cfg"),
    (("train", "--cfg", "sfakd.yaml", "--resume"), "--resume: no run to continue"),
    (("train", "--cfg", "teacher.yaml", "--resume", "--overwrite"), "contradict each other"),
    (("train", "--cfg", "teacher.yaml"), "already holds a run"),
    ((*TRAIN, "--fast"), "unrecognized arguments: --fast"),
    (("train", "--cfg", "teacher.yaml", "--over"), "unrecognized arguments: --over"),  # no abbreviations
    (("study", "--dry-run"), "the following arguments are required: STUDY"),
    ((*EVAL, "gone.pth"), "no checkpoint at gone.pth"),
    ((*EVAL, "truncated.pth"), "truncated.pth is truncated or not a PyTorch file"),
    ((*EVAL, "hostile.pth"), "hostile.pth refused"),
    ((*EVAL, "hostile_zip.pth"), "hostile_zip.pth refused"),
    ((*EVAL, "resnet20.pth", "-d", "imagefolder", "DATASET.ROOT", "images"), "the weights in resnet20.pth do not fit"),
    (("eval", "-m", "resnet20", "-c", CKPT), "holds a resnet14, not a resnet20; give -m resnet14"),
    (("eval", "-m", "resnet41", "-c", CKPT), "holds a resnet14, not a resnet41; give -m resnet14"),
    (("eval", "-m", "vgg8"), "no checkpoint of vgg8 is released"),
    (("eval", "-m", "vgg13"), "no checkpoint at .*vgg13_vanilla"),
    ((*EVAL, CKPT, "DATASET.ROOT", "four"), "trained on 3 classes, the data set imagefolder has 4"),
    ((*EVAL, "output/t/latest.pth"), "is a training state for --resume; give student_latest.pth"),
    (
        (*TRAIN, "DISTILLER.STUDENT", "vgg8", "DATASET.INPUT_SIZE", "2", "DATASET.PADDING", "1"),
        "vgg8 cannot take images of 2 px",
    ),
    ((*TRAIN, "DATASET.INPUT_SIZE", "true"), "DATASET.INPUT_SIZE is True"),
    ((*TRAIN, "SOLVER.LR", "-1"), "SOLVER.LR is -1.0; expected a number above 0"),
    ((*EVAL, CKPT, "-bs", "0"), "DATASET.TEST.BATCH_SIZE is 0"),
    ((*EVAL, CKPT, "-bs", "many"), "argument -bs/--batch-size: invalid int value: 'many'"),
    ((*EVAL, CKPT, "-d", "svhn"), "unknown data set 'svhn'"),
]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.fixture
def bad_files(trained):
    make_image_folder(trained / "four", classes=4)
    for folder in make_image_folder(trained / "renamed").glob("*/class_*"):
        folder.rename(folder.with_name(folder.name.replace("class", "other")))
    (trained / "truncated.pth").write_bytes((trained / CKPT).read_bytes()[:5000])
    (trained / "hostile.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    torch.save({"model": Hostile()}, trained / "hostile_zip.pth")
    torch.save({"model": build_model("resnet20", 3).state_dict()}, trained / "resnet20.pth")
    return trained


def test_bad_input_is_one_line_and_status_2(command, bad_files):
    def files():
        return {p: p.stat().st_mtime_ns for p in bad_files.rglob("*") if p.is_file() and "cache" not in p.parts}

    before = files()
    for arguments, message in BAD:
        status, _, err = command(*arguments)
        assert status == 2, arguments
        assert err.startswith("error: "), (arguments, err)
        assert err.count("\n") == 1, (arguments, err)
        assert re.search(message, err), (arguments, err)
    assert files() == before
    assert not (bad_files / "owned").exists()


def test_true_processes(trained):
    """Exit status and streams of a real process, once for a failure and once for success."""
    status, out, err = run_python(REPO / "tools/train.py", "--cfg", "sfakd.yaml", "DISTILLER.TYPE", "SFAK")
    assert (status, out) == (2, "")
    assert err == "error: unknown distiller 'SFAK'; did you mean SFAKD?\n"
    status, out, err = run_python(REPO / "tools/eval.py", "-m", "resnet14", "-c", CKPT)
    assert (status, err) == (0, "")
    assert "deployed  top-1" in out
