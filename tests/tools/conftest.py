"""A folder to run command lines in: images, a teacher, and the configuration of a short run."""

import pytest
import torch

from mdistiller.models import build_model
from tests.conftest import make_image_folder

YAML = """
DATASET: {TYPE: imagefolder, ROOT: images, INPUT_SIZE: 16, NUM_WORKERS: 0, MEAN: [0.4, 0.4, 0.4], STD: [0.2, 0.2, 0.2]}
DISTILLER: {TYPE: KD, TEACHER: resnet14, STUDENT: resnet8, TEACHER_WEIGHTS: teacher.pth}
SOLVER: {EPOCHS: 1, BATCH_SIZE: 8, SCHEDULE: linear}
LOG: {WANDB: false}
"""


@pytest.fixture
def place(tmp_path):
    make_image_folder(tmp_path / "images")
    torch.save({"model": build_model("resnet14", 3).state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "run.yaml").write_text(YAML)
    return tmp_path
