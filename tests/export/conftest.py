"""Students on the small image folder: nobody trained them, but their statistics are those of its images."""

from __future__ import annotations

import pytest
import torch

from mdistiller.dataset.info import DatasetInfo
from mdistiller.distillers import DeployedStudent, head_dict
from mdistiller.engine import checkpoint as ck
from mdistiller.engine.cfg import CFG
from mdistiller.models import build_model

CLASSES = ("class_0", "class_1", "class_2")
SIZE = 16
MEAN, STD = (0.45, 0.5, 0.55), (0.2, 0.25, 0.3)


def build_student(head=None, arch="resnet8", size=SIZE, seed=0, num_classes=3):
    """A deployed student with random weights, BatchNorm statistics and, with SFAKD's head, a random filter."""
    torch.manual_seed(seed)
    backbone = build_model(arch, num_classes, "cifar100", size)
    final_map = backbone.eval().forward_stages(torch.zeros(1, 3, size, size)).final_map
    channels, height, width = final_map.shape[1:]
    made = None
    if head == "SFAKD":
        made = head_dict["SFAKD"](channels, height, width, 20, num_classes)
        with torch.no_grad():
            made.projector.fusion.frequency.filter.weight.copy_(torch.randn(channels, height, width, 2))
            made.projector.fusion.alpha.fill_(0.3)
            made.projector.fusion.beta.fill_(-0.7)
    elif head == "SIMKD":
        made = head_dict["SIMKD"](channels, max(1, height // 2), max(1, width // 2), 20, num_classes)
    student = DeployedStudent(backbone, made).train()
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the average over the batches below
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for _ in range(3):
            student.forward_eval(torch.randn(16, 3, size, size))
    return student.eval()


def describe(student, root, arch="resnet8", classes=CLASSES):
    info = DatasetInfo("imagefolder", classes, SIZE, MEAN, STD)
    config = {
        "DATASET": {
            **{key: value for key, value in CFG.DATASET.items() if not isinstance(value, dict)},
            "TYPE": "imagefolder",
            "ROOT": str(root),
            "INPUT_SIZE": SIZE,
            "MEAN": list(MEAN),
            "STD": list(STD),
        },
        "DISTILLER": {"TYPE": "NONE" if student.head is None else student.head.kind, "TEACHER": "resnet14"},
    }
    return ck.describe_student(student, arch, info, {"deployed_top1": 41.5, "deployed_top5": 100.0}, 4, config)


@pytest.fixture
def make_student(tmp_path, image_folder):
    """Write `student_best.pth` of a student with a head: `make_student("SFAKD")` → its path."""

    def make(head="SFAKD", arch="resnet8"):
        path = tmp_path / "run" / "student_best.pth"
        path.parent.mkdir(exist_ok=True)
        ck.save(describe(build_student(head, arch), image_folder, arch), path)
        return path

    return make


@pytest.fixture
def student_file(make_student):
    return make_student()


@pytest.fixture
def old_exporter(monkeypatch):
    """Use only the exporter built on TorchScript, which every version has, and which is faster."""
    from mdistiller.export import export

    monkeypatch.setattr(export, "has_new_exporter", lambda: False)
