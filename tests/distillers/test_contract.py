"""Properties of every registered method: names, needs, sizes, deployment, checkpoints."""

import re
from types import SimpleNamespace

import pytest
import torch

from mdistiller.benchmark import methods
from mdistiller.benchmark.teacher_usage import TeacherUsage, used_outputs
from mdistiller.dataset.info import DatasetInfo
from mdistiller.distillers import DeployedStudent, Distiller, distiller_dict
from mdistiller.engine import checkpoint
from mdistiller.engine.cfg import CFG, load_cfg
from mdistiller.engine.cfg.values import leaves
from mdistiller.models import build_model

METHODS = list(distiller_dict)
VARIANTS = [
    methods.Method("SFAKD on maps", "", "SFAKD", ("SFAKD.ALIGN", "map")),
    methods.Method("SFAKD, own classifier", "", "SFAKD", ("SFAKD.CLASSIFIER", "student", "SFAKD.CE_WEIGHT", "1")),
    methods.Method("SFAKD and KD", "", "SFAKD", ("SFAKD.KD_WEIGHT", "1")),
    methods.Method("SFAKD on maps and KD", "", "SFAKD", ("SFAKD.ALIGN", "map", "SFAKD.KD_WEIGHT", "1")),
    methods.Method("SFAKD and KD, own", "", "SFAKD", ("SFAKD.CLASSIFIER", "student", "SFAKD.KD_WEIGHT", "1")),
]
TRAINING_SET = SimpleNamespace(targets=torch.arange(60) % 7)


def batch():
    generator = torch.Generator().manual_seed(1)
    image, target = torch.randn(4, 3, 32, 32, generator=generator), torch.randint(7, (4,), generator=generator)
    return {"image": image, "target": target, "index": torch.arange(4), "epoch": 1}


def build(method, *overrides, teacher=None):
    torch.manual_seed(0)
    settings = ["DISTILLER.TYPE", method, "DATASET.INPUT_SIZE", "32", "CRD.NCE.K", "8", *overrides]
    teacher = build_model("resnet14", 7) if teacher is None else teacher
    distiller = distiller_dict[method](build_model("resnet8x4", 7), teacher, load_cfg(None, settings))
    distiller.attach_data(TRAINING_SET)
    return distiller


@pytest.mark.parametrize("method", METHODS)
def test_declarations(method):
    distiller_class = distiller_dict[method]
    assert issubclass(distiller_class, Distiller)
    assert method == method.upper()
    assert distiller_class.needs_teacher == (method != "NONE") == bool(distiller_class.teacher_needs)
    if method != "NONE":
        assert method in CFG
        assert methods.describe(method).paper[-6:-1].startswith("(20"), "the file's docstring names title and year"


@pytest.mark.parametrize("method", METHODS)
def test_the_unchanged_configuration_means_cifars_images(method):
    assert CFG.DATASET.INPUT_SIZE is None and CFG.DATASET.TYPE == "cifar100"
    torch.manual_seed(0)
    plain = distiller_dict[method](build_model("resnet8x4", 7), build_model("resnet14", 7), CFG)
    plain.attach_data(TRAINING_SET)
    sized = build(method, "CRD.NCE.K", str(CFG.CRD.NCE.K))
    shapes = ({key: value.shape for key, value in one.state_dict().items()} for one in (plain, sized))
    assert next(shapes) == next(shapes)


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_logits(method):
    distiller = build(method).train()
    assert distiller.channels_last
    logits, losses = distiller(**batch())
    assert logits.shape == (4, 7)
    assert losses
    assert all(name.startswith("loss_") and loss.shape == () for name, loss in losses.items())


@pytest.mark.parametrize("method", [*methods.choose(), *VARIANTS], ids=lambda m: m.name)
def test_a_step_uses_of_the_teacher_what_is_declared(method):
    if method.type == "NONE":
        return
    teacher = build_model("resnet14", 7)
    declared = build(method.type, *method.options, teacher=teacher).teacher_needs
    assert used_outputs(lambda t: build(method.type, *method.options, teacher=t), teacher, batch()) == declared


def test_what_counts_as_use():
    usage = TeacherUsage(build_model("resnet8", 7))
    logits, feats = usage(torch.randn(2, 3, 32, 32))
    feats["feats"][1:], feats.get("final_map")
    assert usage.used == set()
    assert type(logits.softmax(1)) is torch.Tensor
    torch.cat([feats["preact_feats"][0]])
    assert usage.used == {"logits", "maps"}
    torch.nn.functional.linear(input=feats["pooled_feat"], weight=torch.ones(1, 64))
    assert usage.used == {"logits", "maps", "pooled"}
    assert usage.get_classifier().out_features == 7


@pytest.mark.parametrize("method", METHODS)
def test_extra_parameters_are_what_the_method_adds(method):
    distiller = build(method)
    kept = ("student.", "teacher.")
    added = sum(p.numel() for name, p in distiller.named_parameters() if not name.startswith(kept))
    if method == "CRD":
        added += 2 * 60 * CFG.CRD.FEAT.DIM + 2  # the memory banks and their constants
    assert distiller.get_extra_parameters() == added
    learned = {name for name, p in distiller.named_parameters() if p.requires_grad}
    assert not [name for name in learned if name.startswith("teacher.")]
    assert len(distiller.get_learnable_parameters()) == len(learned)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_deployed_survives_its_checkpoint(method, tmp_path):
    distiller = build(method).train()
    image = batch()["image"]
    distiller(**batch())  # BatchNorm statistics of its own
    distiller.eval()
    deployed = distiller(image=image)
    torch.testing.assert_close(distiller.forward_eval(image)["deployed"], deployed)
    assert set(distiller.forward_eval(image)) == ({"deployed"} if distiller.head is None else {"deployed", "probe"})

    info = DatasetInfo("imagefolder", tuple("abcdefg"), 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    student = DeployedStudent(distiller.student, distiller.head)
    content = checkpoint.describe_student(student, "resnet8x4", info, {"deployed_top1": 1.0}, 1, {"DATASET": {}})
    checkpoint.save(content, tmp_path / "student.pth")
    read = checkpoint.read_checkpoint(tmp_path / "student.pth")
    assert (read["head"] is None) == (distiller.head is None)
    torch.testing.assert_close(checkpoint.load_student(read, "resnet8x4", 7, "student.pth").eval()(image), deployed)


def test_which_methods_deploy_a_head():
    assert [method for method in METHODS if build(method).head is not None] == ["SFAKD", "SIMKD"]


@pytest.mark.parametrize("method", METHODS)
def test_ranges(method):
    """Each range belongs to a key, each number has a range, and the defaults are within their ranges."""
    distiller_class, section = distiller_dict[method], CFG.get(method, {})
    defaults = dict(leaves(section))
    assert set(distiller_class.RANGES) <= set(defaults)
    assert list(distiller_class.config_errors(section, method)) == []
    free = {"INIT_PRED_VAR", "LAMBDA_MIN", "LAMBDA_MAX"}  # validated together with another key; of either sign
    assert {key for key, value in defaults.items() if type(value) in (int, float)} - set(distiller_class.RANGES) <= free
    for key in distiller_class.RANGES:
        bad = load_cfg(None, [f"{method}.{key}", "[-1]" if isinstance(defaults[key], list) else "-1"])
        (line,) = distiller_class.config_errors(bad[method], method)
        assert re.match(rf"{method}\.{key} is .*; expected ", line)


@pytest.mark.parametrize("method", [*methods.choose(), *VARIANTS], ids=lambda m: m.name)
def test_losses_are_those_declared(method):
    cfg = load_cfg(None, ["DISTILLER.TYPE", method.type, *method.options])
    declared = distiller_dict[method.type].loss_names(cfg.get(method.type))
    assert declared is None or set(declared) == set(build(method.type, *method.options).train()(**batch())[1])
