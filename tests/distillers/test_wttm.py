"""WTTM: a softened teacher against the student at temperature 1, weighted by the teacher's power sum."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers.WTTM import power_sum, ttm_loss
from mdistiller.errors import UserError


def test_power_sum_literal_values():
    logits = torch.log(torch.tensor([[0.64, 0.36], [0.5, 0.5]]))
    torch.testing.assert_close(power_sum(logits, 2.0), torch.tensor([0.8 + 0.6, math.sqrt(2)]))
    torch.testing.assert_close(power_sum(logits, 1.0), torch.ones(2))


def test_power_sum_lies_between_one_and_its_bound():
    certain, unsure = torch.tensor([[1000.0, 0, 0, 0]]), torch.zeros(1, 4)
    assert power_sum(certain, 4.0).item() == pytest.approx(1)
    assert power_sum(unsure, 4.0).item() == pytest.approx(4**0.75)


def test_loss_literal_value():
    teacher = torch.log(torch.tensor([[0.64, 0.36]]))  # power transform at T = 2: (4/7, 3/7), its sum 1.4
    student = torch.log(torch.tensor([[0.5, 0.5]]))
    divergence = 4 / 7 * math.log(8 / 7) + 3 / 7 * math.log(6 / 7)
    assert ttm_loss(student, teacher, 2.0, weighted=False).item() == pytest.approx(divergence, rel=1e-4)
    assert ttm_loss(student, teacher, 2.0).item() == pytest.approx(1.4 * divergence, rel=1e-4)


@pytest.mark.parametrize("weighted", [True, False])
def test_loss_equals_the_power_transform(weighted):
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5), 3 * torch.randn(3, 5)
    total = 0.0
    for i in range(3):
        q, p = torch.softmax(student[i].double(), 0), torch.softmax(teacher[i].double(), 0)
        powers = [p[j].item() ** (1 / 4) for j in range(5)]
        transformed = [power / sum(powers) for power in powers]
        divergence = sum(transformed[j] * math.log(transformed[j] / q[j].item()) for j in range(5))
        total += (sum(powers) if weighted else 1) * divergence
    assert ttm_loss(student, teacher, 4.0, weighted).item() == pytest.approx(total / 3, rel=1e-4)


def test_gradient_is_the_weighted_difference_of_predictions():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    ttm_loss(student, teacher, 4.0).backward()
    difference = torch.softmax(student, 1) - torch.softmax(teacher / 4, 1)
    torch.testing.assert_close(student.grad, power_sum(teacher, 4.0)[:, None] * difference.detach() / 3)


def test_a_student_that_is_the_transformed_teacher_has_no_loss_and_no_gradient():
    teacher = torch.randn(3, 5)
    student = (teacher / 4).requires_grad_()
    loss = ttm_loss(student, teacher, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_total_loss_is_the_sum_of_its_definition():
    options = ["WTTM.CE_WEIGHT", "0.5", "WTTM.KD_WEIGHT", "3", "WTTM.TEMPERATURE", "2"]
    image, target = batch()
    for weighted in (True, False):
        distiller = build("WTTM", *options, "WTTM.WEIGHTED", str(weighted))
        logits, losses = distiller(image=image, target=target, epoch=1)
        expected = ttm_loss(logits, distiller.teacher(image)[0], 2.0, weighted)
        assert set(losses) == {"loss_ce", "loss_kd"}
        torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(logits, target))
        torch.testing.assert_close(losses["loss_kd"], 3 * expected)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step(teacher, student):
    distiller = build("WTTM", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    assert distiller.get_extra_parameters() == 0


def test_the_student_deploys_alone():
    check_student_deploys_alone(build("WTTM"))


def test_bad_options():
    with pytest.raises(UserError, match=r"WTTM\.TEMPERATURE is -1\.0; expected a number above 0"):
        build("WTTM", "WTTM.TEMPERATURE", "-1")
