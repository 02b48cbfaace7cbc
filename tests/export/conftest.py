"""Students on the small image folder: nobody trained them, but their statistics are those of its images."""

from __future__ import annotations

import pytest
import torch

from mdistiller.dataset.info import DatasetInfo
from mdistiller.distillers import DeployedStudent, head_dict
from mdistiller.distillers.heads import split_forward
from mdistiller.engine import checkpoint as ck
from mdistiller.engine.cfg import CFG
from mdistiller.export.export import export_student
from mdistiller.export.options import Options
from mdistiller.models import build_model
from tests.conftest import make_image_folder

CLASSES = ("class_0", "class_1", "class_2")
SIZE = 16
MEAN, STD = (0.45, 0.5, 0.55), (0.2, 0.25, 0.3)


def build_student(head=None, arch="resnet8", size=SIZE, seed=0, num_classes=3, arguments=()):
    """A deployed student with random weights, BatchNorm statistics and, with SFAKD's head, a random filter."""
    torch.manual_seed(seed)
    backbone = build_model(arch, num_classes, "cifar100", size, dict(arguments))
    final_map = None if head is None else split_forward(backbone.eval(), torch.zeros(2, 3, size, size))[0]
    channels, height, width = (0, 0, 0) if final_map is None else final_map.shape[1:]
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


def describe(student, root, arch="resnet8", classes=CLASSES, arguments=()):
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
    config["DISTILLER"]["STUDENT_ARGS"] = dict(arguments)
    return ck.describe_student(student, arch, info, {"deployed_top1": 41.5, "deployed_top5": 100.0}, 4, config)


@pytest.fixture(autouse=True)
def latency_of_one_run(monkeypatch):
    """Measure latencies by one run of each batch, because no test depends on the speed."""
    monkeypatch.setattr("mdistiller.export.proof.MAX_RUNS", 1)
    monkeypatch.setattr("mdistiller.export.proof.WARM_UP", 0)


@pytest.fixture
def make_student(tmp_path, image_folder):
    """Write `student_best.pth` of a student with a head: `make_student("SFAKD")` → its path."""

    def make(head="SFAKD", arch="resnet8", arguments=()):
        path = tmp_path / "run" / "student_best.pth"
        path.parent.mkdir(exist_ok=True)
        student = build_student(head, arch, arguments=arguments)
        ck.save(describe(student, image_folder, arch, arguments=arguments), path)
        return path

    return make


@pytest.fixture
def student_file(make_student):
    return make_student()


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A folder with images and with exports that several tests read, and none changes."""
    folder = tmp_path_factory.mktemp("exports")
    make_image_folder(folder / "images")
    return folder


@pytest.fixture(scope="session")
def kept_results():
    return {}


@pytest.fixture
def exported(session_folder, kept_results, monkeypatch):
    """Export a student with a head, once in the session: `exported("SFAKD", format="onnx")` → its `Result`."""

    def get(head="SFAKD", **options):
        key = head, Options(**options)
        if key not in kept_results:
            path = session_folder / str(head) / "student_best.pth"
            path.parent.mkdir(exist_ok=True)
            ck.save(describe(build_student(head), session_folder / "images"), path)
            with monkeypatch.context() as patch:
                patch.setattr("mdistiller.export.export.has_new_exporter", lambda: False)
                kept_results[key] = export_student(path, key[1])
        return kept_results[key]

    return get


@pytest.fixture
def old_exporter(monkeypatch):
    """Use only the exporter built on TorchScript, which every version has, and which is faster."""
    monkeypatch.setattr("mdistiller.export.export.has_new_exporter", lambda: False)


@pytest.fixture
def onnx_libraries():
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra 'export'")
