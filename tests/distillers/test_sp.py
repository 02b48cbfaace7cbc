"""SP: the similarities between the images of a batch."""

import math

import pytest
import torch
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers.SP import sp_loss


def literal_similarity(feat):
    images = feat.reshape(len(feat), -1).tolist()
    rows = [[sum(x * y for x, y in zip(a, b)) for b in images] for a in images]
    return [value / math.sqrt(sum(other**2 for other in row)) for row in rows for value in row]


def test_literal_values():
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)  # products 1, 1 and 1, 2
    teacher = torch.tensor([[2.0, 0.0], [0.0, 5.0]]).view(2, 2, 1, 1)  # the unit matrix
    first, second = (1 - 0.5**0.5) ** 2 + 0.5, 0.2 + (1 - 2 / 5**0.5) ** 2
    assert sp_loss([student], [teacher]).item() == pytest.approx((first + second) / 4)
    assert sp_loss([student] * 2, [teacher] * 2).item() == pytest.approx((first + second) / 2)


def test_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, 2, 2), torch.randn(5, 7, 4, 4)
    pairs = zip(literal_similarity(student), literal_similarity(teacher))
    expected = sum((s - t) ** 2 for s, t in pairs) / 25
    assert sp_loss([student], [teacher]).item() == pytest.approx(expected, rel=1e-4)


def test_the_same_similarities_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher = torch.randn(4, 6, 2, 2)
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    student = (3 * torch.einsum("ck,bkhw->bchw", turn, teacher)).requires_grad_()
    loss = sp_loss([student], [teacher])
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert student.grad.abs().max() < 1e-6


def test_dead_maps_are_differentiable():
    student = torch.zeros(3, 4, 2, 2, requires_grad=True)
    sp_loss([student], [torch.rand(3, 5, 2, 2)]).backward()
    assert student.grad.isfinite().all()


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    student, teacher = [torch.randn(4, 6, 2, 2)], [torch.randn(4, 3, 1, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = sp_loss(student, teacher)
    torch.testing.assert_close(loss, sp_loss(student, teacher), rtol=0, atol=0)


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("SP", "SP.LOSS.CE_WEIGHT", "0.5", "SP.LOSS.FEAT_WEIGHT", "3")
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    torch.testing.assert_close(loss_kd, 3 * sp_loss([student["feats"][-1]], [teacher["feats"][-1]]))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("SP", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    assert distiller.get_extra_parameters() == 0
    check_student_deploys_alone(distiller)
