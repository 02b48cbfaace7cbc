"""PKT: divergence of neighbor probabilities."""

import math

import pytest
import torch
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers.PKT import pkt_loss


def literal_probabilities(feat):
    rows = []
    for a in feat.tolist():
        row = []
        for b in feat.tolist():
            dot = sum(x * y for x, y in zip(a, b))
            row.append((dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)) + 1) / 2)
        rows.append([value / sum(row) for value in row])
    return rows


def test_literal_values():
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # orthogonal: similarities 1 and 1/2, shares 2/3 and 1/3
    teacher = torch.tensor([[1.0], [-1.0]])  # opposite: 1 and 0
    expected = (2 * 1.0 * math.log(1 / (2 / 3)) + 0) / 4
    assert pkt_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.rand(5, 7)
    pairs = zip(literal_probabilities(student), literal_probabilities(teacher))
    terms = [t * math.log((t + 1e-7) / (s + 1e-7)) for rows in pairs for s, t in zip(*rows)]
    assert pkt_loss(student, teacher).item() == pytest.approx(sum(terms) / 25, rel=1e-4)


def test_the_same_directions_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher = torch.randn(4, 6)
    student = (teacher * torch.tensor([[1.0], [2.0], [3.0], [4.0]])).requires_grad_()
    loss = pkt_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert student.grad.abs().max() < 1e-6


def test_a_dead_feature_is_differentiable():
    student = torch.zeros(3, 4, requires_grad=True)
    loss = pkt_loss(student, torch.rand(3, 5))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = pkt_loss(student, teacher)
    torch.testing.assert_close(loss, pkt_loss(student, teacher), rtol=0, atol=0)


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("PKT", "PKT.LOSS.CE_WEIGHT", "0.5", "PKT.LOSS.FEAT_WEIGHT", "300")
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    torch.testing.assert_close(loss_kd, 300 * pkt_loss(student["pooled_feat"], teacher["pooled_feat"]))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("PKT", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    assert distiller.get_extra_parameters() == 0
    check_student_deploys_alone(distiller)
