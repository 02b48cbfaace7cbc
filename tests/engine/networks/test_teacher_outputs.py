"""Teachers whose classifier has more outputs than the data set has classes, as `build_teacher` returns them."""

import pytest
import torch
from torch import nn

from mdistiller.dataset.info import DatasetInfo
from mdistiller.distillers import DeployedStudent
from mdistiller.engine.cfg import load_cfg, settings_of, to_dict
from mdistiller.engine.checkpoint import describe_student
from mdistiller.engine.networks.build import build_teacher
from mdistiller.engine.networks.teacher_outputs import keep_outputs
from mdistiller.engine.speed.teacher_cache import weights_digest
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import make_image_folder

INFO = DatasetInfo("imagefolder", ("class_0", "class_1", "class_2"), 16, (0.4,) * 3, (0.2,) * 3)
NAMES = ["class 2", "dog", "Class_0", "cat", "CLASS1"]
ROWS = [2, 4, 0]
IMAGE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))

OWN = """
from torch import nn

def make(num_classes=5):
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    return nn.Sequential(*layers)

def five_classes():
    return make(5)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def saved(arch, place, num_outputs=5, size=16):
    """Save a teacher with random weights, also of its BatchNorms; return it."""
    torch.manual_seed(3)
    model = build_model(arch, num_outputs, "imagefolder", size)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    torch.save({"model": model.state_dict()}, place / "teacher.pth")
    return model.eval()


def config(arch, *more):
    given = ["DISTILLER.TEACHER", arch, "DISTILLER.TEACHER_WEIGHTS", "teacher.pth", "DATASET.TYPE", "imagefolder"]
    return load_cfg(None, [*given, *more])


ARCHS = [
    "resnet8", "wrn_16_1", "torchvision/mobilenet_v3_small", "timm/mobilenetv3_small_050", "own.py:make",
    "own.py:five_classes",
]  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
def test_logits_are_the_chosen_columns_of_the_whole_teachers(arch, place):
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    whole = saved(arch, place)
    teacher = build_teacher(config(arch, "DISTILLER.TEACHER_CLASSES", "names.txt"), INFO).eval()
    classifier = teacher.get_classifier()
    assert isinstance(classifier, nn.Linear) and classifier.out_features == 3
    assert torch.equal(classifier.weight, whole.get_classifier().weight[ROWS])
    assert torch.equal(classifier.bias, whole.get_classifier().bias[ROWS])
    with torch.no_grad():
        (logits, feats), (full, full_feats) = teacher(IMAGE), whole(IMAGE)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits, full[:, ROWS])
    assert torch.equal(feats["pooled_feat"], full_feats["pooled_feat"])
    assert weights_digest(teacher) != weights_digest(whole)  # so that a cache of outputs or a resumed run notices


def test_literal_rows_without_a_bias():
    model = build_model("resnet8", 4)
    model.fc = nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        model.fc.weight.copy_(torch.arange(8.0).view(4, 2))
    model.fc.weight.requires_grad_(False)
    keep_outputs(model, [3, 1])
    assert model.fc.weight.tolist() == [[6, 7], [2, 3]] and model.fc.bias is None
    assert not model.fc.weight.requires_grad


def test_a_parametrized_classifier_is_refused():
    model = build_model("resnet8", 4)
    nn.utils.parametrizations.weight_norm(model.fc)
    with pytest.raises(UserError, match="its classifier is parametrized"):
        keep_outputs(model, [0])


def test_a_teacher_without_a_linear_classifier_is_refused(place):
    saved("torchvision/squeezenet1_1", place, size=32)
    big = DatasetInfo("imagefolder", INFO.classes, 32, INFO.mean, INFO.std)
    with pytest.raises(UserError, match="outputs of the teacher cannot be chosen: torchvision/squeezenet1_1 gives no"):
        build_teacher(config("torchvision/squeezenet1_1", "DISTILLER.TEACHER_CLASSES", "names.txt"), big)


def describe(model, classes, place):
    info = DatasetInfo("imagefolder", tuple(classes), 16, INFO.mean, INFO.std)
    accuracy, settings = {"deployed_top1": 50.0}, to_dict(load_cfg(None, []))
    torch.save(describe_student(DeployedStudent(model), "resnet8", info, accuracy, 1, settings), place / "teacher.pth")


@pytest.mark.parametrize("classes", [["class_2", "class_0", "class_1"], ["x", "class_1", "class_0", "y", "class_2"]])
def test_described_teachers_know_their_classes(classes, place, caplog):
    whole = saved("resnet8", place, len(classes))
    describe(whole, classes, place)
    with caplog.at_level("INFO", "mdistiller"):
        teacher = build_teacher(config("resnet8"), INFO).eval()
    rows = [classes.index(name) for name in INFO.classes]
    torch.testing.assert_close(teacher(IMAGE)[0], whole(IMAGE)[0][:, rows])
    assert caplog.messages == [
        f"note: of the teacher's {len(classes)} outputs, the 3 of the data set's classes are used"
    ]


def test_a_described_teacher_of_the_same_classes_is_not_noted(place, caplog):
    describe(saved("resnet8", place, 3), INFO.classes, place)
    with caplog.at_level("INFO", "mdistiller"):
        build_teacher(config("resnet8"), INFO)
    assert caplog.messages == []


@pytest.mark.parametrize("arch", ["resnet8", "own.py:make"])
def test_a_head_that_fits_nothing_names_the_key(arch, place):
    saved(arch, place)
    message = (
        "classifier .* in teacher.pth has 5 outputs, the data set imagefolder has 3 .*with DISTILLER.TEACHER_CLASS"
    )
    with pytest.raises(UserError, match=message) as error:
        build_teacher(config(arch), INFO)
    assert len(str(error.value).splitlines()) == 1


def test_a_constructor_with_other_outputs_names_the_key(place):
    saved("own.py:five_classes", place)
    with pytest.raises(
        UserError, match=r"logits \[2, 5\] .* expected \[2, 3\].*classes, set DISTILLER.TEACHER_CLASSES"
    ):
        build_teacher(config("own.py:five_classes"), INFO)


def test_too_many_names_are_counted(place):
    saved("resnet8", place, 4)
    with pytest.raises(UserError, match="fc in teacher.pth has 4 outputs, DISTILLER.TEACHER_CLASSES names.txt names 5"):
        build_teacher(config("resnet8", "DISTILLER.TEACHER_CLASSES", "names.txt"), INFO)


RUN = """
DATASET: {TYPE: imagefolder, ROOT: images, INPUT_SIZE: 16, NUM_WORKERS: 0, MEAN: [0.4, 0.4, 0.4], STD: [0.2, 0.2, 0.2]}
DISTILLER: {TYPE: SFAKD, TEACHER: resnet14, STUDENT: resnet8, TEACHER_WEIGHTS: teacher.pth, TEACHER_CLASSES: names.txt}
SOLVER: {EPOCHS: 1, BATCH_SIZE: 8, SCHEDULE: linear}
LOG: {WANDB: false}
"""


def test_a_run_whose_student_carries_the_chosen_classifier(place, command):
    make_image_folder(place / "images")
    whole = saved("resnet14", place)
    (place / "run.yaml").write_text(RUN)
    status, out, err = command("train", "--cfg", "run.yaml", "EXPERIMENT.NAME", "sfakd")
    assert status == 0, err
    assert out.index("is chance level for 3 classes; its classes may be in another") < out.index("epoch   1/1")
    student = place / "output/sfakd/student_best.pth"
    held = torch.load(student, weights_only=True)["head"]["state"]
    assert any(torch.equal(value, whole.get_classifier().weight[ROWS]) for value in held.values())
    status, out, err = command("eval", "-m", "resnet8", "-c", student)
    assert status == 0 and "deployed" in out, err
    # a moved or reordered file of names is the same teacher as long as the rows are the same
    (place / "names.txt").rename(place / "moved.txt")
    status, out, err = command(
        *("train", "--cfg", "run.yaml", "--resume", "EXPERIMENT.NAME", "sfakd", "SOLVER.EPOCHS", "2"),
        *("DISTILLER.TEACHER_CLASSES", "moved.txt"),
    )
    assert status == 0 and "epoch   2/2" in out, err


def test_the_file_is_compared_by_its_effect():
    assert "DISTILLER.TEACHER_CLASSES" not in settings_of(load_cfg(None, ["DISTILLER.TEACHER_CLASSES", "imagenet"]))


@pytest.mark.parametrize(
    "given, message", [("gone.txt", "no file at gone.txt; expected imagenet"), (".", "no file at .")]
)
def test_a_missing_file_is_refused_with_the_configuration(given, message, place, command):
    make_image_folder(place / "images")
    saved("resnet14", place)
    (place / "run.yaml").write_text(RUN)
    status, _, err = command("train", "--cfg", "run.yaml", "DISTILLER.TEACHER_CLASSES", given)
    assert status == 2 and f"DISTILLER.TEACHER_CLASSES: {message}" in err and len(err.splitlines()) == 1
