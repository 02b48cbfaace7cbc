"""What MDistiller's users, its forks, and files of earlier versions rely on."""

from __future__ import annotations

import importlib
import json
import tarfile
from pathlib import Path

import pytest
import torch

from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.checkpoint import load_student, read_checkpoint
from mdistiller.models import build_model

GOLDEN = Path(__file__).parent / "golden"
# The run of tests/golden/earlier_run.tar.xz: killed in its second epoch, saved before `engine/` had packages. Its
# weights were replaced by zeros, which compress.
RUN = (
    "DATASET.TYPE imagefolder DATASET.ROOT images DATASET.INPUT_SIZE 16 DATASET.NUM_WORKERS 0 DISTILLER.TYPE SFAKD"
    " DISTILLER.STUDENT resnet8 DISTILLER.TEACHER resnet14 DISTILLER.TEACHER_WEIGHTS teacher.pth SOLVER.EPOCHS 2"
    " SOLVER.LR 0.02 SOLVER.BATCH_SIZE 9 SOLVER.AMP off SOLVER.LR_DECAY_STAGES [] LOG.WANDB False EXPERIMENT.NAME run"
)
NAMES = {
    "mdistiller.engine.cfg": ["CFG", "show_cfg"],
    "mdistiller.engine": ["trainer_dict"],
    "mdistiller.engine.checkpoint": ["read_checkpoint", "load_student", "save"],
    "mdistiller.distillers": ["distiller_dict"],
    "mdistiller.distillers._base": ["Distiller"],
    "mdistiller.distillers._common": ["ConvReg", "get_feat_shapes"],
    "mdistiller.models": ["cifar_model_dict", "imagenet_model_dict", "tiny_imagenet_model_dict"],
    "mdistiller.dataset": ["get_dataset"],
}


@pytest.mark.parametrize("module", list(NAMES))
def test_names_that_forks_import(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


@pytest.fixture
def earlier_run(image_folder: Path, tmp_path: Path) -> Path:
    state = build_model("resnet14", 3).state_dict()
    torch.save({"model": {key: torch.zeros_like(value) for key, value in state.items()}}, tmp_path / "teacher.pth")
    with tarfile.open(GOLDEN / "earlier_run.tar.xz") as archive:
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.13 warns without one
        archive.extractall(tmp_path / "output", **options)  # type: ignore[arg-type]
    return tmp_path / "output/run"


def test_a_run_of_an_earlier_version_resumes(earlier_run: Path) -> None:
    summary = build_trainer(load_cfg(None, RUN.split())).train(resume=True)
    assert summary["epochs"] == 2
    assert "resumed after epoch 1 of 2" in (earlier_run / "worklog.txt").read_text()
    rows = [json.loads(line) for line in (earlier_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["loss"] == 2.1655648201704025  # kept as it was written


def test_a_student_of_an_earlier_version_loads(earlier_run: Path) -> None:
    path = earlier_run / "student_best.pth"
    student = load_student(read_checkpoint(path), "resnet8", 3, path).eval()
    assert student.head is not None
    assert student.head.kind == "SFAKD"
    assert torch.equal(student(torch.randn(2, 3, 16, 16)), torch.zeros(2, 3))


def test_saved_states_keep_their_keys(earlier_run: Path, image_folder: Path) -> None:
    saved = read_checkpoint(earlier_run / "latest.pth")
    now = build_trainer(load_cfg(None, RUN.split())).state.state_dict()
    # Without a precision, the run goes on in that of this machine; without machines, it records this one;
    # without `evaluated`, each epoch was evaluated.
    newer = ["evaluated", "machines", "precision"]
    assert [key for key in now if key not in newer] == list(saved)
    assert set(now) - set(saved) == set(newer)
