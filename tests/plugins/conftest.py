"""A configuration to which a plug-in is to be added."""

from __future__ import annotations

import pytest
import torch

from mdistiller.models import build_model


@pytest.fixture
def settings(image_folder, tmp_path):
    """`base.yaml`: a teacher and a student on small images; a method is to be added."""
    torch.manual_seed(0)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "base.yaml").write_text(
        f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: 16, NUM_WORKERS: 0}}\n"
        "DISTILLER: {TEACHER: resnet14, STUDENT: resnet8, TEACHER_WEIGHTS: teacher.pth}\n"
        "SOLVER: {EPOCHS: 2, BATCH_SIZE: 8, LR: 0.02, LR_DECAY_STAGES: []}\n"
        "LOG: {WANDB: False}\nEXPERIMENT: {NAME: run}\n"
    )
    return tmp_path
