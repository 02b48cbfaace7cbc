"""NST: maximum mean discrepancy of the channels' maps."""

import numpy as np
import pytest
import torch
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers.NST import mean_kernel, nst_loss


def literal_stage(student, teacher):
    """The mean kernel between two sets of channels, channel by channel; maps of one size, in float64."""

    def unit(feat):
        flat = feat.double().numpy().reshape(*feat.shape[:2], -1)
        return flat / np.sqrt((flat**2).sum(2, keepdims=True))

    def kernel(a, b):
        values = [np.dot(x, y) ** 2 for image_a, image_b in zip(a, b) for x in image_a for y in image_b]
        return sum(values) / len(values)

    student, teacher = unit(student), unit(teacher)
    return kernel(student, student) + kernel(teacher, teacher) - 2 * kernel(student, teacher)


def test_literal_values():
    student = torch.tensor([[[[2.0, 0.0]], [[3.0, 4.0]]]])  # directions (1, 0) and (0.6, 0.8)
    teacher = torch.tensor([[[[0.0, 7.0]]]])  # (0, 1)
    expected = (1 + 0.36 + 0.36 + 1) / 4 + 1 - 2 * (0 + 0.64) / 2
    assert nst_loss([student], [teacher]).item() == pytest.approx(expected)
    assert nst_loss([student] * 2, [teacher] * 2).item() == pytest.approx(2 * expected)


@pytest.mark.parametrize(("channels", "size"), [((5, 3), 4), ((20, 30), 2), ((3, 20), 3)])
def test_loss_equals_an_independent_computation(channels, size):
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, c, size, size) for c in channels)
    assert nst_loss([student], [teacher]).item() == pytest.approx(literal_stage(student, teacher), rel=1e-4)


def test_both_orders_of_multiplication_agree():
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, 4), torch.randn(2, 7, 4)
    expected = (a @ b.transpose(1, 2)).square().mean()
    torch.testing.assert_close(mean_kernel(a, b), expected)
    torch.testing.assert_close(mean_kernel(a[:, :3], b), (a[:, :3] @ b.transpose(1, 2)).square().mean())


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled(larger):
    torch.manual_seed(0)
    small, large = torch.randn(2, 3, 2, 2), torch.randn(2, 5, 6, 6)
    cells = torch.stack([large[:, :, y : y + 3, x : x + 3].mean((2, 3)) for y in (0, 3) for x in (0, 3)], 2)
    pooled = cells.reshape(2, 5, 2, 2)
    given = nst_loss([large], [small]) if larger == "student" else nst_loss([small], [large])
    assert given.item() == pytest.approx(literal_stage(pooled, small), rel=1e-4)


def test_the_same_channels_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher = torch.rand(2, 3, 4, 4)
    student = (2 * teacher[:, [2, 0, 1]]).requires_grad_()
    loss = nst_loss([student], [teacher])
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_a_dead_channel_is_differentiable():
    student = torch.rand(2, 3, 4, 4)
    student[:, 1] = 0
    student.requires_grad_()
    nst_loss([student], [torch.rand(2, 3, 4, 4)]).backward()
    assert student.grad.isfinite().all()


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("NST", "NST.LOSS.CE_WEIGHT", "0.5", "NST.LOSS.FEAT_WEIGHT", "3")
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    torch.testing.assert_close(loss_kd, 3 * nst_loss(student["feats"][1:], teacher["feats"][1:]))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("NST", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    assert distiller.get_extra_parameters() == 0
    check_student_deploys_alone(distiller)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    student, teacher = [torch.randn(2, 3, 4, 4)], [torch.randn(2, 5, 4, 4)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = nst_loss(student, teacher)
    torch.testing.assert_close(loss, nst_loss(student, teacher), rtol=0, atol=0)
