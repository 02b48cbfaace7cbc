"""DKD: target and non-target parts of the divergence, and the warm-up."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers.DKD import dkd_loss
from mdistiller.distillers.KD import kd_loss


def literal_loss(logits_student, logits_teacher, target, alpha, beta, temperature):
    """Image by image, class by class, in Python's double precision."""
    total = 0.0
    for s, t, label in zip(logits_student.tolist(), logits_teacher.tolist(), target.tolist()):
        q, p = ([math.exp(x / temperature) for x in logits] for logits in (s, t))
        q, p = [x / sum(q) for x in q], [x / sum(p) for x in p]
        rest_q, rest_p = 1 - q[label], 1 - p[label]
        tckd = p[label] * math.log(p[label] / q[label]) + rest_p * math.log(rest_p / rest_q)
        others = [c for c in range(len(p)) if c != label]
        nckd = sum(p[c] / rest_p * math.log(p[c] / rest_p / (q[c] / rest_q)) for c in others)
        total += temperature**2 * (alpha * tckd + beta * nckd) / len(target)
    return total


def test_literal_value():
    student = torch.tensor([[0.5, 0.25, 0.25]]).log()
    teacher = torch.tensor([[0.6, 0.3, 0.1]]).log()
    target = torch.tensor([0])
    tckd = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)
    nckd = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert dkd_loss(student, teacher, target, 1.0, 0.0, 1.0).item() == pytest.approx(tckd, rel=1e-5)
    assert dkd_loss(student, teacher, target, 0.0, 1.0, 1.0).item() == pytest.approx(nckd, rel=1e-5)
    assert dkd_loss(student, teacher, target, 2.0, 3.0, 1.0).item() == pytest.approx(2 * tckd + 3 * nckd, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_equals_an_independent_computation(temperature):
    torch.manual_seed(0)
    student, teacher, target = 3 * torch.randn(6, 9), 3 * torch.randn(6, 9), torch.randint(9, (6,))
    expected = literal_loss(student, teacher, target, 1.0, 8.0, temperature)
    assert dkd_loss(student, teacher, target, 1.0, 8.0, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_with_the_right_weights_it_is_kd_in_value_and_gradient():
    torch.manual_seed(0)
    student, teacher, target = torch.randn(1, 6, requires_grad=True), torch.randn(1, 6), torch.tensor([4])
    beta = 1 - F.softmax(teacher / 3.0, dim=1)[0, 4].item()
    decoupled, whole = dkd_loss(student, teacher, target, 1.0, beta, 3.0), kd_loss(student, teacher, 3.0)
    torch.testing.assert_close(decoupled, whole)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (decoupled, whole)))


def test_equal_logits_have_neither_loss_nor_gradient():
    torch.manual_seed(0)
    teacher, target = torch.randn(4, 6), torch.randint(6, (4,))
    student = (teacher + 3.0).requires_grad_()  # softmax does not see a shift
    loss = dkd_loss(student, teacher, target, 1.0, 8.0, 4.0)
    loss.backward()
    assert abs(loss.item()) < 1e-4
    assert student.grad.abs().max() < 1e-5


def test_certain_networks_give_finite_losses_and_gradients():
    teacher = torch.tensor([[500.0, 0.0, 1.0]])  # in float32 nothing is left for the other classes
    student = torch.tensor([[600.0, 1.0, 0.0]], requires_grad=True)
    loss = dkd_loss(student, teacher, torch.tensor([0]), 1.0, 8.0, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("warmup", "epoch", "factor"), [("20", 5, 0.25), ("20", 20, 1), ("20", 90, 1), ("0", 1, 1)])
def test_total_loss_is_the_sum_of_its_definition(warmup, epoch, factor):
    distiller = build("DKD", "DKD.CE_WEIGHT", "0.5", "DKD.BETA", "2", "DKD.WARMUP", warmup)
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=epoch)
    expected = dkd_loss(distiller.student(image)[0], distiller.teacher(image)[0], target, 1.0, 2.0, 4.0)
    assert set(losses) == {"loss_ce", "loss_kd"}
    torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(logits, target))
    torch.testing.assert_close(losses["loss_kd"], factor * expected)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_gradients_reach_every_learnable_parameter_and_no_teacher(teacher, student):
    distiller = build("DKD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    check_student_deploys_alone(distiller)
