"""VID: a Gaussian around the regressed map, with a learnable variance for each channel."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers._common import match_size
from mdistiller.distillers.VID import vid_loss
from mdistiller.errors import UserError


def test_literal_values():
    log_scale = torch.tensor([math.log(math.e - 1), math.log(math.e**2 - 1)])  # variances 1 and 2
    predicted, teacher = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([4.0, 0.0]).view(1, 2, 1, 1)
    expected = (0.5 * 9 / 1 + 0.5 * (4 / 2 + math.log(2))) / 2
    assert vid_loss(predicted, log_scale, teacher, 0.0).item() == pytest.approx(expected)


def test_loss_equals_minus_the_log_density():
    torch.manual_seed(0)
    predicted, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    log_scale = torch.tensor([-1.0, 0.5, 2.0])
    total = 0.0
    for channel, scale in enumerate(log_scale.tolist()):
        variance = math.log(1 + math.exp(scale)) + 1e-2
        for p, t in zip(predicted[:, channel].flatten().tolist(), teacher[:, channel].flatten().tolist()):
            density = math.exp(-((p - t) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
            total -= math.log(density) + 0.5 * math.log(2 * math.pi)
    assert vid_loss(predicted, log_scale, teacher, 1e-2).item() == pytest.approx(total / predicted.numel(), rel=1e-5)


def test_a_large_scale_does_not_overflow():
    predicted = torch.zeros(1, 1, 1, 1)
    assert vid_loss(predicted, torch.tensor([200.0]), predicted).item() == pytest.approx(0.5 * math.log(200))


def test_the_exact_map_at_unit_variance_has_no_loss_and_no_gradient():
    teacher = torch.rand(2, 3, 4, 4)
    predicted = teacher.clone().requires_grad_()
    loss = vid_loss(predicted, torch.full((3,), math.log(math.e - 1)), teacher, 0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert not predicted.grad.any()


def test_the_best_variance_is_the_squared_error():
    error = torch.full((2, 1, 3, 3), 3.0)
    log_scale = torch.tensor([math.log(math.expm1(9.0))], requires_grad=True)
    vid_loss(error, log_scale, torch.zeros_like(error), 0.0).backward()
    assert log_scale.grad.item() == pytest.approx(0, abs=1e-6)


def test_variances_start_as_configured_and_are_saved():
    distiller = build("VID", "VID.INIT_PRED_VAR", "3", "VID.EPS", "0.5", student="MobileNetV2")
    assert [len(scale) for scale in distiller.log_scales] == [16, 32, 64]
    for scale in distiller.log_scales:
        torch.testing.assert_close(F.softplus(scale) + 0.5, torch.full_like(scale, 3.0))
    assert {f"log_scales.{i}" for i in range(3)} <= set(distiller.state_dict())


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("VID", "VID.LOSS.CE_WEIGHT", "0.5", "VID.LOSS.FEAT_WEIGHT", "3", student="MobileNetV2")
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    expected = 0.0
    for stage, regressor in enumerate(distiller.regressors):
        feat_student, feat_teacher = match_size(student["feats"][stage + 1], teacher["feats"][stage + 1])
        error = (regressor(feat_student) - feat_teacher).square().mean()
        expected += 0.5 * (error / 5.0 + math.log(5.0))
    torch.testing.assert_close(loss_kd, 3 * expected)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("VID", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    names = ("regressors.", "log_scales.")
    extra = sum(p.numel() for name, p in distiller.named_parameters() if name.startswith(names))
    assert distiller.get_extra_parameters() == extra > 0
    check_student_deploys_alone(distiller)


@pytest.mark.parametrize("variance", ["0.1", "-5", ".inf"])
def test_bad_variances(variance):
    with pytest.raises(UserError, match=r"VID.INIT_PRED_VAR is .* and VID.EPS .* \(5.0 and 1e-5"):
        build("VID", "VID.INIT_PRED_VAR", variance, "VID.EPS", "0.1")
    with pytest.raises(UserError, match=r"^VID.EPS is -1.0; expected 0 or more$"):
        build("VID", "VID.EPS", "-1")


def test_bad_input_size():
    with pytest.raises(UserError, match=r"VID.INPUT_SIZE is 'small'"):
        build("VID", "VID.INPUT_SIZE", "small")
