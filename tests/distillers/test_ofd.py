"""OFD: margins, partial distance, connectors, and the teacher's mode."""

import math

import pytest
import torch
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers.OFD import make_connector, negative_mean, ofd_loss
from mdistiller.errors import UserError
from mdistiller.models import ClassifierModel


def test_margins_literal_values():
    mean, std = torch.tensor([0.0, 0.0, 5.0, -4.0]), torch.tensor([1.0, -2.0, 1.0, 1e-3])
    half_normal = math.sqrt(2 / math.pi)  # E|x| of a standard Gaussian
    expected = torch.tensor([-half_normal, -2 * half_normal, -3.0, -4.0])
    torch.testing.assert_close(negative_mean(mean, std), expected)


def test_margins_equal_a_numerical_integral():
    for mean, std in ((0.3, 0.7), (-1.2, 0.4), (2.0, 1.0)):
        x = torch.linspace(mean - 12 * std, 0, 400_001, dtype=torch.float64)
        density = torch.exp(-0.5 * ((x - mean) / std) ** 2)
        expected = (torch.trapezoid(x * density, x) / torch.trapezoid(density, x)).item()
        assert negative_mean(torch.tensor([mean]), torch.tensor([std])).item() == pytest.approx(expected, rel=1e-5)


def test_margins_of_pruned_channels_are_finite():
    margins = negative_mean(torch.tensor([0.0, 1.0, -1.0]), torch.zeros(3))
    torch.testing.assert_close(margins, torch.tensor([0.0, 0.0, -1.0]))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (0.5, 2.0, 2.25),  # the teacher fires: always
        (3.0, 2.0, 1.0),
        (-0.5, -0.4, 0.0),  # the teacher is silent, and so is the student
        (0.5, -0.4, 0.81),  # the teacher is silent, the student is not
        (-0.3, -0.4, 0.01),
        (0.5, -9.0, 2.25),  # as far as the margin, -1, and no further
        (-2.0, -9.0, 0.0),
    ],
)
def test_loss_literal_values(student, teacher, expected):
    maps = (torch.full((1, 1, 1, 1), value) for value in (student, teacher))
    assert ofd_loss(*maps, torch.tensor(-1.0).view(1, 1, 1, 1)).item() == pytest.approx(expected, abs=1e-7)


def test_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    student, teacher, margin = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 4, 4), [-0.1, -0.5, -1.0, -2.0]
    total = 0.0
    for b in range(3):
        for c in range(4):
            for y in range(2):
                for x in range(2):
                    s = student[b, c, y, x].item()
                    t = teacher[b, c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean().item()
                    if t > 0 or s > t > margin[c]:
                        total += (s - t) ** 2
                    elif t <= margin[c] < s:
                        total += (s - margin[c]) ** 2
    loss = ofd_loss(student, teacher, torch.tensor(margin).view(1, 4, 1, 1))
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


def test_a_student_that_equals_or_stays_silent_has_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher, margin = torch.randn(2, 3, 4, 4), torch.full((1, 3, 1, 1), -0.5)
    silent = torch.where(teacher <= 0, teacher.clamp(min=-0.5) - 1, teacher).requires_grad_()
    loss = ofd_loss(silent, teacher, margin)
    loss.backward()
    assert loss == 0
    assert not silent.grad.any()


def test_connectors_start_at_the_fan_out_scale():
    torch.manual_seed(0)
    convolution, norm = make_connector(64, 128, 3)
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.05)
    assert convolution.bias is None
    assert norm.num_features == 128
    assert make_connector(4, 6, 3)(torch.randn(2, 4, 5, 5)).shape == (2, 6, 5, 5)


@pytest.mark.parametrize(
    ("teacher", "student", "stages"),
    [("resnet14", "resnet8", 3), ("vgg8", "ShuffleV1", 3), ("wrn_16_1", "MobileNetV2", 3)],
)
def test_total_loss_is_the_sum_of_its_definition(teacher, student, stages):
    distiller = build("OFD", "OFD.LOSS.CE_WEIGHT", "0.5", "OFD.LOSS.FEAT_WEIGHT", "3", teacher=teacher, student=student)
    loss_kd, feats_student, feats_teacher = check_cross_entropy(distiller, 0.5)
    norms = distiller.teacher.get_bn_before_relu()
    assert len(distiller.connectors) == stages
    expected = 0.0
    for back in range(1, stages + 1):  # from the last stage to the first
        margin = negative_mean(norms[-back].bias, norms[-back].weight).detach().view(1, -1, 1, 1)
        connected = distiller.connectors[-back](feats_student["preact_feats"][-back])
        expected += ofd_loss(connected, feats_teacher["preact_feats"][-back], margin) / 2 ** (back - 1)
    torch.testing.assert_close(loss_kd, 3 * expected)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("OFD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    assert distiller.get_extra_parameters() == sum(p.numel() for p in distiller.connectors.parameters())
    check_student_deploys_alone(distiller)


def test_margins_are_saved_and_move_with_the_module():
    distiller = build("OFD")
    assert {f"margin_{i}" for i in range(3)} <= set(distiller.state_dict())
    assert all(margin.dtype == torch.float64 for margin in distiller.double().margins)


def test_the_published_teacher_mode_is_a_switch():
    image, target = batch()
    for switch in (False, True):
        distiller = build("OFD", "OFD.TEACHER_TRAIN_MODE", str(switch))
        norm = distiller.teacher.get_bn_before_relu()[0]
        before = norm.running_mean.clone()
        _, losses = distiller(image=image, target=target)
        assert torch.equal(norm.running_mean, before) is not switch
        assert all(module.training is switch for module in distiller.teacher.modules())
        sum(losses.values()).backward()
        assert all(p.grad is None for p in distiller.teacher.parameters())
        distiller.eval()
        assert not any(module.training for module in distiller.teacher.modules())


def test_bad_kernel():
    with pytest.raises(UserError, match=r"OFD.CONNECTOR.KERNEL_SIZE is 0; expected 1 pixel or more"):
        build("OFD", "OFD.CONNECTOR.KERNEL_SIZE", "0")


def test_a_teacher_whose_norms_do_not_fit_is_refused(monkeypatch):
    resnet = "mdistiller.models.cifar.resnet.ResNet.get_bn_before_relu"
    monkeypatch.setattr(resnet, ClassifierModel.get_bn_before_relu)
    with pytest.raises(UserError, match=r"gives \[\]"):
        build("OFD")
    monkeypatch.setattr(resnet, lambda self: [self.bn1])
    with pytest.raises(
        UserError, match=r"a BatchNorm for each of the teacher's stages, of \[16, 32, 64\].*gives \[16\]"
    ):
        build("OFD")
