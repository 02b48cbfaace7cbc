"""LSKD: logits standardized before KD or DKD compares them."""

import pytest
import torch
from one_step import PAIRS, batch, build, check_step

from mdistiller.distillers._common import standardize_logits
from mdistiller.distillers.DKD import dkd_loss
from mdistiller.distillers.KD import kd_loss

TARGET = torch.tensor([0, 3, 5])


def stand_kd(student, teacher):
    return kd_loss(student, teacher, 2.0, logit_stand=True)


def stand_dkd(student, teacher):
    return dkd_loss(student, teacher, TARGET, 1.0, 8.0, 2.0, logit_stand=True)


def logits():
    torch.manual_seed(0)
    return torch.randn(3, 6), torch.randn(3, 6)


def test_literal_values():
    given = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5]])
    torch.testing.assert_close(standardize_logits(given), expected, atol=1e-6, rtol=1e-6)


def test_rows_have_mean_0_and_deviation_1():
    given = 5 * torch.randn(4, 9, dtype=torch.bfloat16) + 3
    out = standardize_logits(given)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean(1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.square().sum(1), torch.full((4,), 8.0))


@pytest.mark.parametrize("loss", [stand_kd, stand_dkd])
def test_loss_is_the_plain_one_of_standardized_logits(loss):
    student, teacher = logits()
    rows = [[(x - row.mean()) / row.std() for x in row] for row in (*student.double(), *teacher.double())]
    student_z, teacher_z = torch.tensor(rows).chunk(2)
    plain = kd_loss(student_z, teacher_z, 2.0)
    if loss is stand_dkd:
        plain = dkd_loss(student_z, teacher_z, TARGET, 1.0, 8.0, 2.0)
    torch.testing.assert_close(loss(student, teacher), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [stand_kd, stand_dkd])
def test_shift_and_scale_count_neither_in_value_nor_in_gradient(loss):
    student, teacher = logits()
    student.requires_grad_()
    value = loss(student, teacher)
    torch.testing.assert_close(loss(7 * student - 2, 0.1 * teacher + 5), value, rtol=1e-4, atol=1e-5)
    value.backward()
    assert student.grad.abs().max() > 1e-3
    torch.testing.assert_close(student.grad.sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close((student.grad * student).sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    assert loss(3 * teacher + 1, teacher).item() == pytest.approx(0, abs=1e-4)


def test_equal_logits_of_all_classes_are_differentiable():
    student = torch.zeros(3, 6, requires_grad=True)
    stand_kd(student, logits()[1]).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("method", ["KD", "DKD"])
def test_the_option_changes_the_loss(method):
    image, target = batch()
    for stand in (False, True):
        distiller = build(method, f"{method}.LOGIT_STAND", str(stand))
        _, losses = distiller(image=image, target=target, epoch=20)
        both = distiller.student(image)[0], distiller.teacher(image)[0]
        expected = 0.9 * kd_loss(*both, 4.0, stand) if method == "KD" else dkd_loss(*both, target, 1.0, 8.0, 4.0, stand)
        torch.testing.assert_close(losses["loss_kd"], expected)


@pytest.mark.parametrize("method", ["KD", "DKD"])
@pytest.mark.parametrize(("teacher", "student"), PAIRS[:2])
def test_gradients_reach_every_learnable_parameter_and_no_teacher(method, teacher, student):
    distiller = build(method, f"{method}.LOGIT_STAND", "True", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
