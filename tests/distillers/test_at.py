"""AT: attention maps of the stages."""

import numpy as np
import pytest
import torch
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers.AT import at_loss, attention
from mdistiller.errors import UserError


def cell_means(feat, size):
    """Average each of `size × size` equal cells of `[B, C, H, W]`, one by one."""
    step = feat.shape[2] // size
    out = np.zeros((*feat.shape[:2], size, size))
    for y in range(size):
        for x in range(size):
            out[:, :, y, x] = feat[:, :, y * step : (y + 1) * step, x * step : (x + 1) * step].mean((2, 3))
    return out


def literal_loss(feats_student, feats_teacher, p):
    total = 0.0
    for pair in zip(feats_student, feats_teacher):
        size = min(feat.shape[2] for feat in pair)
        maps = []
        for feat in pair:
            strength = (np.abs(cell_means(feat.double().numpy(), size)) ** p).sum(1).reshape(len(feat), -1)
            maps.append(strength / np.sqrt((strength**2).sum(1, keepdims=True)))
        total += ((maps[0] - maps[1]) ** 2).sum() / maps[0].size
    return total


def test_literal_values():
    student = torch.tensor([[[[1.0, -2.0]], [[1.0, 2.0]]]])  # p = 2: strengths 1 and 4
    teacher = torch.tensor([[[[3.0, 0.0]]]])
    torch.testing.assert_close(attention(student, 2.0), torch.tensor([[1.0, 4.0]]) / 17**0.5)
    torch.testing.assert_close(attention(student, 1.0), torch.tensor([[1.0, 2.0]]) / 5**0.5)
    expected = ((1 / 17**0.5 - 1) ** 2 + 16 / 17) / 2
    assert at_loss([student], [teacher], 2.0).item() == pytest.approx(expected)
    assert at_loss([student, teacher], [teacher, teacher], 2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
def test_loss_equals_an_independent_computation(p):
    torch.manual_seed(0)
    student = [torch.randn(3, 4, 8, 8), torch.randn(3, 6, 4, 4), torch.randn(3, 2, 4, 4)]
    teacher = [torch.randn(3, 5, 4, 4), torch.randn(3, 2, 8, 8), torch.randn(3, 2, 4, 4)]
    assert at_loss(student, teacher, p).item() == pytest.approx(literal_loss(student, teacher, p), rel=1e-5)


def test_maps_of_the_same_attention_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher = torch.rand(2, 3, 4, 4)
    student = (-5 * teacher[:, [2, 0, 1]]).requires_grad_()  # neither scale, sign nor order of channels count
    loss = at_loss([student], [teacher], 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert student.grad.abs().max() < 1e-6


def test_a_dead_map_is_differentiable():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    at_loss([student], [torch.rand(2, 3, 4, 4)], 2.0).backward()
    assert student.grad.isfinite().all()


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("AT", "AT.LOSS.CE_WEIGHT", "0.5", "AT.LOSS.FEAT_WEIGHT", "3", "AT.P", "1")
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    torch.testing.assert_close(loss_kd, 3 * at_loss(student["feats"][1:], teacher["feats"][1:], 1.0))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("AT", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    assert distiller.get_extra_parameters() == 0
    check_student_deploys_alone(distiller)


def test_bad_power():
    with pytest.raises(
        UserError, match=r"AT.P is 0.5; expected 1 or more \(2.0 is the default; the gradient of a lower"
    ):
        build("AT", "AT.P", "0.5")


def test_a_student_without_stages_is_refused(monkeypatch):
    monkeypatch.setattr("mdistiller.models.cifar.resnet.ResNet.get_stage_channels", lambda self: [16])
    with pytest.raises(UserError, match=r"ResNet gives 1 maps in 'feats'.*another model"):
        build("AT")
