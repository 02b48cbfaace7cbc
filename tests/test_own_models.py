"""Users' own models in plug-in files: with every method, trained, saved, evaluated; and their errors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.distillers._plugins import build_distiller
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.checkpoint import load_student, read_checkpoint
from mdistiller.errors import UserError
from mdistiller.models import FAMILIES, build_model, cifar_model_dict
from mdistiller.models._outputs import LOGITS_ONLY_METHODS
from tests.conftest import REPO

pytestmark = pytest.mark.usefixtures("registries_as_before")

OWN_MODELS = REPO / "tests/models/own_models.py"
METHODS = list(distiller_dict)


def train_a_step(method, student, teacher):
    """Train one step, evaluate, and return the losses by name."""
    cfg = load_cfg(None, ["PLUGINS", str(OWN_MODELS), "DATASET.INPUT_SIZE", "16", "CRD.NCE.K", "8"])
    models = [build_model(name, 3, "imagefolder", 16) for name in (student, teacher)]
    for model in models:  # a classifier of zeros passes no gradient
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    distiller = build_distiller(method, *models, cfg, 8)
    distiller.attach_data(SimpleNamespace(targets=torch.arange(8) % 3))
    image, target = torch.randn(4, 3, 16, 16), torch.arange(4) % 3
    _, losses = distiller.train()(image=image, target=target, index=torch.arange(4), epoch=1)
    sum(losses.values()).backward()
    before = distiller.eval()(image=image)
    torch.optim.SGD(distiller.get_learnable_parameters(), 0.01).step()
    assert not torch.equal(distiller(image=image), before)
    assert torch.equal(distiller.forward_eval(image)["deployed"], distiller(image=image))
    return losses


@pytest.mark.parametrize("pair", ["contract contract", "contract resnet8", "resnet8 contract", "plain plain"])
@pytest.mark.parametrize("method", METHODS)
def test_mdistillers_forward_or_logits_whose_graph_is_known_serve_every_method(method, pair):
    student, teacher = pair.split()
    if method == "OFD" and teacher == "contract":
        message = r"stages, of \[16, 32\] channels; get_bn_before_relu\(\) of this Contract gives \[\]; give it that"
        with pytest.raises(UserError, match=message):
            train_a_step(method, student, teacher)
        return
    assert all(loss.isfinite() for loss in train_a_step(method, student, teacher).values())


# the first missing output if the model is the teacher, and if it is the student
LACKS = {
    **dict.fromkeys(("AT", "CAT_KD", "FITNET", "KDSVD", "NST", "SP", "VID"), ("feats", "feats")),
    **dict.fromkeys(("CRD", "PKT", "RKD"), ("pooled_feat", "pooled_feat")),
    "OFD": ("preact_feats", "preact_feats"),
    "REVIEWKD": ("preact_feats", "feats"),
    "SFAKD": ("pooled_feat", "final_map"),
    "SIMKD": ("final_map", "final_map"),
}


@pytest.mark.parametrize("pair", ["logits_alone resnet8", "resnet8 logits_alone"])
@pytest.mark.parametrize("method", METHODS)
def test_logits_alone_serve_the_methods_that_read_nothing_else(method, pair):
    student, teacher = pair.split()
    if method in ("NONE", *LOGITS_ONLY_METHODS.split(", ")):
        assert all(loss.isfinite() for loss in train_a_step(method, student, teacher).values())
        return
    lacking = LACKS[method][student == "logits_alone"]
    message = f"(logits_alone gives no|LogitsAlone gives 0 maps in) '{lacking}'.*KD"
    with pytest.raises(UserError, match=message) as caught:
        train_a_step(method, student, teacher)
    assert "\n" not in str(caught.value)


@pytest.fixture
def settings(image_folder, tmp_path):
    """`x.yaml`: SFAKD from a teacher to a user's own student, whose file is in the same folder."""
    shutil.copy(OWN_MODELS, tmp_path / "my_models.py")
    load_cfg(None, ["PLUGINS", str(tmp_path / "my_models.py")])
    torch.save({"model": build_model("contract", 3).state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "x.yaml").write_text(
        f"PLUGINS: [my_models.py]\n"
        f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: 16, NUM_WORKERS: 0}}\n"
        "DISTILLER: {TYPE: SFAKD, TEACHER: contract, STUDENT: contract, TEACHER_WEIGHTS: teacher.pth}\n"
        "SOLVER: {EPOCHS: 2, BATCH_SIZE: 8, LR: 0.02, LR_DECAY_STAGES: []}\n"
        "LOG: {WANDB: False}\nEXPERIMENT: {NAME: run}\n"
    )
    return tmp_path


def test_trained_saved_and_evaluated(command, settings):
    status, out, err = command("train", "--cfg", "x.yaml")
    assert (status, err) == (0, "")
    assert "teacher in inference form: 2 BatchNorms folded" in out
    checkpoint = read_checkpoint("output/run/student_best.pth")
    student = load_student(checkpoint, "contract", 3, "student_best.pth")
    assert list(checkpoint["model"]) == list(build_model("contract", 3).state_dict())
    assert student.head.kind == "SFAKD"
    # another process does not load the plug-in: code that a checkpoint names is not run without consent
    del cifar_model_dict["contract"], sys.modules["mdistiller.distillers.my_models"]
    for family in FAMILIES:
        del family["logits_alone"], family["plain"]
    evaluate = ("eval", "-m", "contract", "-c", "output/run/student_latest.pth")
    status, out, err = command(*evaluate)
    assert (status, out) == (2, "")
    assert err == (
        "error: the checkpoint's model 'contract' is not known here; if you trust it, load what it was trained with:"
        f' PLUGINS "[{Path.cwd()}/my_models.py]" (predict.py: --plugin FILE; report.py: --set PLUGINS "[FILE]")\n'
    )
    status, out, err = command(*evaluate, "PLUGINS", "my_models.py")
    assert (status, err) == (0, "")
    recorded = read_checkpoint("output/run/student_latest.pth")["accuracy"]
    assert f"deployed  top-1 {recorded['deployed_top1']:.2f}" in out
    assert f"probe     top-1 {recorded['probe_top1']:.2f}" in out


def test_logits_alone_as_teacher_with_a_cache(command, settings):
    torch.save(build_model("logits_alone", 3).state_dict(), "teacher.pth")
    changes = ("DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "logits_alone", "DISTILLER.STUDENT", "logits_alone")
    status, out, err = command("train", "--cfg", "x.yaml", *changes, "TEACHER_CACHE", "memory")
    assert (status, err) == (0, "")
    assert "teacher cache: 36 images" in out
    status, out, err = command("eval", "-m", "logits_alone", "-c", "output/run/student_best.pth")
    assert (status, err) == (0, "")
    assert "probe" not in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("DISTILLER.STUDENT", "logits_alone"), "error: logits_alone gives no 'final_map', the last stage's"),
        (("DISTILLER.TYPE", "RKD", "DISTILLER.STUDENT", "logits_alone"), "error: logits_alone gives no 'pooled_feat'"),
        (("DISTILLER.STUDENT", "gone"), "error: unknown CIFAR model 'gone'"),
        (("DISTILLER.STUDENT", "logits_alone", "DATASET.INPUT_SIZE", "2.5"), "DATASET.INPUT_SIZE"),
    ],
)
def test_what_cannot_work_is_one_line_before_the_run_begins(command, settings, changes, message):
    status, _, err = command("train", "--cfg", "x.yaml", *changes)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not (settings / "output").exists()


def test_a_file_that_fails_half_way_leaves_no_model(settings):
    before = [dict(family) for family in FAMILIES]
    source = OWN_MODELS.read_text(encoding="utf-8")
    for name, new in (('"contract"', '"other"'), ("logits_alone", "alone"), ('"plain"', '"bare"')):
        source = source.replace(name, new)
    torchvision = 'import torchvision\ncifar_model_dict["theirs"] = (torchvision.models.resnet18, None)\n'
    (settings / "other.py").write_text(f"{source}{torchvision}raise RuntimeError('half way')\n")
    with pytest.raises(UserError, match="other.py cannot be imported .RuntimeError: half way"):
        load_cfg(None, ["PLUGINS", "other.py"])
    assert before == [dict(family) for family in FAMILIES]
    (settings / "other.py").write_text(source + torchvision)
    load_cfg(None, ["PLUGINS", "other.py"])
    assert build_model("theirs", 3)(torch.zeros(2, 3, 32, 32))[0].shape == (2, 3)
