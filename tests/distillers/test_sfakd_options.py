"""SFAKD's options for ablations: fusion, projector, weight decay, warm-up, and KD's loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step
from torch import nn

from mdistiller.distillers import Distiller, head_dict, register
from mdistiller.distillers.SFAKD import (
    SFAKD,
    BottleneckProjector,
    FrequencyBranch,
    Fusion,
    SpatialBranch,
    pooled_alignment_loss,
)
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg, settings_of
from mdistiller.engine.checkpoint import load_student, read_checkpoint
from mdistiller.engine.evaluation.eval_checkpoint import eval_checkpoint
from mdistiller.engine.solver.optim import build_optimizer
from mdistiller.engine.trainer import trainer_dict
from mdistiller.engine.validate import setting_errors
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.engine.test_trainer import settings

ABLATED = "SFAKD.FUSION fixed SFAKD.PROJECTOR full SFAKD.DECAY_FILTER False SFAKD.WARMUP_EPOCHS 4 SFAKD.KD_WEIGHT 1"


def fusion_of(distiller):
    return (distiller.head or distiller.aligner).projector.fusion


def stepped(*overrides, steps=2, trainer="base"):
    """Return a distiller after some training steps."""
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32", "SOLVER.AMP", "off", "SOLVER.LR", "0.05", *overrides])
    made = trainer_dict[trainer]("run", build("SFAKD", *overrides), None, None, cfg)
    made.distiller.train()
    for step in range(steps):
        image, target = batch(step)
        made.train_step({"image": image, "target": target}, 1, step, 10)
    return made.distiller


# fusion


def test_fixed_weights_stay_halves():
    distiller = stepped("SFAKD.FUSION", "fixed")
    fusion = fusion_of(distiller)
    assert (fusion.alpha.item(), fusion.beta.item()) == (0.5, 0.5)
    assert dict(fusion.named_parameters(recurse=False)) == {}
    learned = fusion_of(stepped())
    assert learned.alpha.item() != 0.5
    assert learned.beta.item() != 0.5


def test_fixed_weights_are_the_start_of_learned_ones_in_value_and_gradient():
    frequency, spatial = FrequencyBranch(3, 4, 4, 0.1, False), SpatialBranch(3)
    feature, probe = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    fusions = [Fusion(frequency, spatial, learnable) for learnable in (True, False)]
    outputs = [fusion(feature) for fusion in fusions]
    expected = (frequency(feature) + spatial(feature)) / 2
    grads = [torch.autograd.grad((out * probe).sum(), feature)[0] for out in (*outputs, expected)]
    assert torch.equal(*outputs)
    assert torch.equal(*grads[:2])
    torch.testing.assert_close(outputs[1], expected)
    torch.testing.assert_close(grads[1], grads[2])


@pytest.mark.parametrize("learnable", [True, False])
def test_an_omitted_branch_has_no_weight(learnable):
    spatial = SpatialBranch(3)
    assert set(Fusion(None, spatial, learnable).state_dict()) == {"beta", "spatial.weight", "spatial.bias"}
    assert "beta" not in Fusion(FrequencyBranch(3, 4, 4, 0.1, False), None, learnable).state_dict()


# projector


def test_layers_of_the_full_projector():
    projector = BottleneckProjector(256, 65, "full")
    convs = [m for m in projector if isinstance(m, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convs]
    assert shapes == [(256, 160, 1, 1), (160, 160, 3, 1), (160, 65, 1, 1)]
    assert all(c.bias is None for c in convs)
    kinds = "".join({nn.Conv2d: "c", nn.BatchNorm2d: "b", nn.ReLU: "r"}[type(m)] for m in projector)
    assert kinds == "cbr" * 3
    assert sum(p.numel() for p in projector.parameters()) == 256 * 160 + 9 * 160**2 + 160 * 65 + 2 * (160 + 160 + 65)
    assert projector(torch.randn(2, 256, 5, 4)).shape == (2, 65, 5, 4)


def test_a_full_convolution_can_be_a_separable_one():
    """With the product of both kernels, output and gradient are those of depthwise and pointwise convolution."""
    torch.manual_seed(0)
    separable, full = BottleneckProjector(6, 10).double(), BottleneckProjector(6, 10, "full").double()
    others = [layer for layer in separable if layer not in (separable[3], separable[4])]
    for target, source in zip([layer for layer in full if layer is not full[3]], others):
        target.load_state_dict(source.state_dict())
    full[3].weight.data = separable[4].weight * separable[3].weight.transpose(0, 1)  # [m, m, 1, 1] · [1, m, 3, 3]
    feature, probe = torch.randn(2, 6, 5, 4).double().requires_grad_(), torch.randn(2, 10, 5, 4)
    outputs = [projector(feature) for projector in (separable, full)]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad((out * probe).sum(), feature)[0] for out in outputs))


# weight decay


def decayed(distiller):
    """Names of the learnable parameters that the optimizer decays, and of those that it does not."""
    names = {id(p): name for name, p in distiller.named_parameters()}
    cfg = load_cfg(None, ["SOLVER.WEIGHT_DECAY", "0.01"])
    optimizer = build_optimizer(cfg, distiller.get_learnable_parameters(), distiller.get_no_decay_parameters())
    found = {0.01: set(), 0.0: set()}
    for group in optimizer.param_groups:
        found[group["weight_decay"]] |= {names[id(p)] for p in group["params"]}
    return found[0.01], found[0.0]


@pytest.mark.parametrize(
    ("overrides", "exempt"),
    [
        ("", {"frequency.filter.weight", "alpha", "beta"}),
        ("SFAKD.LEARNABLE_SIGMA True", {"frequency.filter.weight", "frequency.mask.log_sigma", "alpha", "beta"}),
        ("SFAKD.FUSION fixed", {"frequency.filter.weight"}),
        ("SFAKD.FREQUENCY_BRANCH False", {"beta"}),
        ("SFAKD.FREQUENCY_BRANCH False SFAKD.FUSION fixed", set()),
        ("SFAKD.CLASSIFIER student SFAKD.CE_WEIGHT 1", {"frequency.filter.weight", "alpha", "beta"}),
    ],
)
def test_which_parameters_decay(overrides, exempt):
    distiller = build("SFAKD", *overrides.split(), "SFAKD.DECAY_FILTER", "False")
    prefix = "head" if distiller.head is not None else "aligner"
    with_decay, without = decayed(distiller)
    assert without == {f"{prefix}.projector.fusion.{name}" for name in exempt}
    assert len(with_decay) + len(without) == len(distiller.get_learnable_parameters())
    assert decayed(build("SFAKD", *overrides.split())) == (with_decay | without, set())


@pytest.mark.parametrize("trainer", ["base", "dot"])
def test_weight_decay_in_a_step(trainer):
    """The first step differs by `lr · weight_decay · parameter`, in the filter and the weights of the fusion alone."""
    common = ["SOLVER.WEIGHT_DECAY", "0.5", "SFAKD.CE_WEIGHT", "1"]
    start = build("SFAKD").state_dict()
    with_decay = stepped(*common, steps=1, trainer=trainer).state_dict()
    without = stepped(*common, "SFAKD.DECAY_FILTER", "False", steps=1, trainer=trainer).state_dict()
    names = ("alpha", "beta", "frequency.filter.weight")
    exempt = {f"head.projector.fusion.{name}" for name in names}
    assert {key for key in start if not torch.equal(with_decay[key], without[key])} == exempt
    for key in exempt:
        torch.testing.assert_close(without[key] - with_decay[key], 0.05 * 0.5 * start[key], rtol=1e-4, atol=1e-6)


# warm-up


@pytest.mark.parametrize(
    ("warmup", "epoch", "factor"),
    [("4", 1, 0.25), ("4", 3, 0.75), ("4", 4, 1), ("4", 9, 1), ("2.5", 2, 0.8), ("0", 1, 1)],
)
def test_warmup_scales_the_alignment_alone(warmup, epoch, factor):
    options = ["SFAKD.CE_WEIGHT", "0.5", "SFAKD.KD_WEIGHT", "0.7"]
    image, target = batch()
    plain = build("SFAKD", *options)(image=image, target=target)[1]
    distiller = build("SFAKD", *options, "SFAKD.WARMUP_EPOCHS", warmup)
    losses = distiller(image=image, target=target, epoch=epoch)[1]
    assert losses["loss_feat"].item() == pytest.approx(factor * plain["loss_feat"].item(), rel=1e-6)
    for name in ("loss_ce", "loss_kd", "loss_probe"):
        assert torch.equal(losses[name], plain[name]), name
    pooled = distiller.head(distiller.student(image)[1]["final_map"]).pooled
    expected = pooled_alignment_loss(pooled, distiller.teacher(image)[1]["pooled_feat"])
    torch.testing.assert_close(losses["loss_feat"], 0.1 * factor * expected)


def test_gradients_follow_the_warmup():
    image, target = batch()
    grads = []
    for epoch in (1, 2):
        distiller = build("SFAKD", "SFAKD.WARMUP_EPOCHS", "2")
        distiller(image=image, target=target, epoch=epoch)[1]["loss_feat"].backward()
        grads.append(fusion_of(distiller).frequency.filter.weight.grad)
    torch.testing.assert_close(2 * grads[0], grads[1])


# KD's loss


def literal_kd(logits_student, logits_teacher, temperature):
    """`T² · KL(teacher ‖ student)`, image by image and class by class, in Python's double precision."""
    total = 0.0
    for student, teacher in zip(logits_student.tolist(), logits_teacher.tolist()):
        p, q = ([math.exp(x / temperature) for x in row] for row in (teacher, student))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q))
    return temperature**2 * total / len(logits_student)


@pytest.mark.parametrize("classifier", ["teacher", "student"])
def test_kd_compares_the_deployed_logits_with_the_teachers(classifier):
    options = f"SFAKD.CLASSIFIER {classifier} SFAKD.KD_WEIGHT 0.7 SFAKD.TEMPERATURE 2.5 SFAKD.CE_WEIGHT 0.3"
    distiller = build("SFAKD", *options.split())
    image, target = batch()
    logits, losses = distiller(image=image, target=target)
    own, feats = distiller.student(image)
    deployed = own if classifier == "student" else distiller.head(feats["final_map"]).logits
    expected = 0.7 * literal_kd(deployed, distiller.teacher(image)[0], 2.5)
    assert losses["loss_kd"].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(losses["loss_ce"], 0.3 * F.cross_entropy(deployed, target))
    torch.testing.assert_close(logits, deployed)


def with_logits(distiller, logits):
    """Let a teacher's classifier, weights 0, give these logits for each image."""
    for classifier in (distiller.teacher.get_classifier(), distiller.head.classifier):
        nn.init.zeros_(classifier.weight)
    distiller.teacher.get_classifier().bias.data = torch.tensor(logits)


def test_literal_value_of_the_kd_loss():
    distiller = build("SFAKD", "SFAKD.KD_WEIGHT", "3", "SFAKD.TEMPERATURE", "2")
    with_logits(distiller, [2 * math.log(6.0), *[0.0] * 6])  # at T = 2: a probability of 1/2, six of 1/12
    nn.init.zeros_(distiller.head.classifier.bias)
    image, target = batch()
    expected = 3 * 4 * (0.5 * math.log(7 / 2) + 0.5 * math.log(7 / 12))  # the student's probabilities are 1/7
    assert distiller(image=image, target=target)[1]["loss_kd"].item() == pytest.approx(expected, rel=1e-5)


def test_deployed_logits_that_are_the_teachers_have_no_kd_loss():
    distiller = build("SFAKD", "SFAKD.KD_WEIGHT", "1", "SFAKD.FEAT_WEIGHT", "0")
    image, target = batch()
    pooled = distiller.teacher(image)[1]["pooled_feat"]
    distiller.head.projector = nn.Identity()
    scale = torch.ones((), requires_grad=True)
    student_map = (scale * pooled)[..., None, None]
    distiller.head.map_size = (1, 1)
    distiller.student.forward_stages = lambda image: type("Stages", (), {"final_map": student_map})
    distiller.student.forward_tail = lambda final_map: (torch.zeros(4, 7, requires_grad=True), {})
    loss = distiller(image=image, target=target)[1]["loss_kd"]
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert scale.grad.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("classifier", ["teacher", "student"])
@pytest.mark.parametrize("align", ["pooled", "map"])
def test_what_is_needed_of_the_teacher(classifier, align):
    options = ["SFAKD.ALIGN", align, "SFAKD.CLASSIFIER", classifier, "SFAKD.CE_WEIGHT", "1"]
    aligned = "maps" if align == "map" else "pooled"
    assert build("SFAKD", *options).teacher_needs == (aligned,)
    assert build("SFAKD", *options, "SFAKD.KD_WEIGHT", "0.1").teacher_needs == ("logits", aligned)


# all of them


@pytest.mark.parametrize("classifier", ["teacher", "student"])
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_gradients_reach_every_learnable_parameter_and_no_teacher(teacher, student, classifier):
    options = [*ABLATED.split(), "SFAKD.CLASSIFIER", classifier]
    distiller = build("SFAKD", *options, teacher=teacher, student=student)
    image, target = batch()
    losses = check_step(distiller, image=image, target=target, epoch=1)
    declared = SFAKD.loss_names(load_cfg(None, options).SFAKD)
    assert set(losses) == set(declared)
    assert len(losses) == len(declared)


def test_the_defaults_are_those_before_these_options():
    options = load_cfg(None).SFAKD
    new = ("FUSION", "PROJECTOR", "DECAY_FILTER", "WARMUP_EPOCHS", "KD_WEIGHT")
    assert [options[key] for key in new] == ["learned", "separable", True, 0.0, 0.0]
    assert SFAKD.loss_names(options) == ("loss_probe", "loss_feat")


def test_a_head_saved_before_these_options_loads():
    head = build("SFAKD").eval().head
    earlier = {key: value for key, value in head.options.items() if key not in ("fusion", "projector")}
    assert len(earlier) == len(head.options) - 2
    again = head_dict["SFAKD"](**earlier).eval()
    again.load_state_dict(head.state_dict())
    feature = torch.randn(2, 64, 8, 8)
    assert torch.equal(again(feature).logits, head(feature).logits)


def test_evaluation_rebuilds_the_student(image_folder):
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3, "imagefolder", 16).state_dict()}, "teacher.pth")
    trainer = build_trainer(settings(image_folder, *ABLATED.split(), method="SFAKD"))
    summary = trainer.train()
    path = trainer.folder.student_latest
    saved = read_checkpoint(path)
    assert saved["head"]["options"]["fusion"] == "fixed"
    assert saved["head"]["options"]["projector"] == "full"
    assert saved["head"]["state"]["projector.fusion.alpha"] == 0.5
    student = load_student(saved, "resnet8", 3, path).eval()
    assert not list(student.head.projector.fusion.parameters(recurse=False))
    assert sum(isinstance(module, nn.Conv2d) for module in student.head.projector.bottleneck) == 3
    image = torch.randn(2, 3, 16, 16)
    trainer.distiller.eval()
    torch.testing.assert_close(student(image), trainer.distiller(image=image))
    assert f"deployed  top-1 {summary['last']['deployed_top1']:.2f}" in eval_checkpoint("resnet8", path, [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("SFAKD.FUSION residual", "SFAKD.FUSION is 'residual'; expected learned or fixed"),
        ("SFAKD.PROJECTOR depthwise", "SFAKD.PROJECTOR is 'depthwise'; expected separable or full"),
        ("SFAKD.WARMUP_EPOCHS -1", "SFAKD.WARMUP_EPOCHS is -1.0; expected 0 epochs or more"),
        ("SFAKD.KD_WEIGHT -1", "SFAKD.KD_WEIGHT is -1.0; expected a weight of 0 or more"),
        ("SFAKD.TEMPERATURE 0", "SFAKD.TEMPERATURE is 0.0; expected a number above 0"),
        ("SFAKD.DECAY_FILTER 0.1", "SFAKD.DECAY_FILTER"),
        ("SFAKD.FEAT_WEIGHT 0", "SFAKD.FEAT_WEIGHT and SFAKD.CE_WEIGHT and SFAKD.KD_WEIGHT are 0; set one above 0"),
        ("SFAKD.LEARNABLE_SIGMA True SFAKD.FREQUENCY_BRANCH False", "LEARNABLE_SIGMA needs SFAKD.FREQUENCY_BRANCH"),
        (
            "SFAKD.CLASSIFIER student",
            "CE_WEIGHT is 0, and so is SFAKD.KD_WEIGHT; set one or both, for example to 1.0",
        ),
    ],
)
def test_bad_options(overrides, message):
    with pytest.raises(UserError, match=message):
        build("SFAKD", *overrides.split())


@pytest.fixture
def subclass(registries_as_before):
    """A method of a user's own, with all options of SFAKD and one more."""

    @register("SUBCLASS")
    class Subclass(SFAKD):
        DEFAULTS = {**SFAKD.DEFAULTS, "MORE": 1.0}

        def forward_train(self, image, target, **kwargs):
            return super().forward_train(image, target, **kwargs)

    return Subclass


def test_a_subclass_reads_its_own_section_and_declares_its_own_needs(subclass):
    options = ["SUBCLASS.FEAT_WEIGHT", "7", "SUBCLASS.CLASSIFIER", "student", "SUBCLASS.CE_WEIGHT", "1"]
    cfg = load_cfg(None, ["DISTILLER.TYPE", "SUBCLASS", "DATASET.INPUT_SIZE", "32", *options])
    distiller = subclass(build_model("resnet8", 5), build_model("resnet14", 5), cfg)
    assert (distiller.feat_weight, distiller.ce_weight, distiller.head) == (7.0, 1.0, None)
    assert distiller.teacher_needs == Distiller.teacher_needs


def test_settings_of_another_section_count_for_a_plug_in_alone(subclass):
    def settings_with(method, *overrides):
        return settings_of(load_cfg(None, ["DISTILLER.TYPE", method, *overrides]))

    assert settings_with("SFAKD") == settings_with("SFAKD", "KD.TEMPERATURE", "40.0")
    assert settings_with("SUBCLASS") != settings_with("SUBCLASS", "KD.TEMPERATURE", "40.0")
    bad = load_cfg(None, ["DISTILLER.TYPE", "SUBCLASS", "KD.TEMPERATURE", "-4"])
    assert setting_errors(bad) == ["KD.TEMPERATURE is -4.0; expected a number above 0"]
