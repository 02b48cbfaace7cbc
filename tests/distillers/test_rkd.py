"""RKD: relative distances of pairs and angles of triples."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers.RKD import angles, relative_distances, rkd_loss
from mdistiller.errors import UserError


def smooth_l1(a, b):
    gap = abs(a - b)
    return 0.5 * gap**2 if gap < 1 else gap - 0.5


def literal_distances(feat, squared):
    power = 2 if squared else 1
    rows = [[math.dist(a, b) ** power for b in feat.tolist()] for a in feat.tolist()]
    apart = [value for i, row in enumerate(rows) for j, value in enumerate(row) if i != j]
    return [value / (sum(apart) / len(apart)) for row in rows for value in row]


def literal_angles(feat):
    points, out = feat.tolist(), []
    for at in points:
        for first in points:
            for second in points:
                a, b = ([x - y for x, y in zip(to, at)] for to in (first, second))
                lengths = math.hypot(*a) * math.hypot(*b)
                out.append(sum(x * y for x, y in zip(a, b)) / lengths if lengths else 0.0)
    return out


def difference(feat):
    return feat[None] - feat[:, None]


TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # sides 3, 4, 5, mean 4; a right angle at the first


def test_literal_values():
    distances = relative_distances(difference(TRIANGLE), squared=False, eps=1e-12)
    torch.testing.assert_close(distances, torch.tensor([[0.0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4)
    squares = relative_distances(difference(TRIANGLE), squared=True, eps=1e-12)
    torch.testing.assert_close(squares, torch.tensor([[0.0, 9, 16], [9, 0, 25], [16, 25, 0]]) / (50 / 3))
    cosines = angles(difference(TRIANGLE))
    torch.testing.assert_close(cosines[0], torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    torch.testing.assert_close(cosines[1], torch.tensor([[1.0, 0, 0.6], [0, 0, 0], [0.6, 0, 1]]))


@pytest.mark.parametrize("squared", [False, True])
def test_loss_equals_an_independent_computation(squared):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.rand(5, 8) * 4
    far = [smooth_l1(*pair) for pair in zip(literal_distances(student, squared), literal_distances(teacher, squared))]
    turned = [smooth_l1(*pair) for pair in zip(literal_angles(student), literal_angles(teacher))]
    expected = 2.0 * sum(far) / 25 + 3.0 * sum(turned) / 125
    assert rkd_loss(student, teacher, squared, 1e-12, 2.0, 3.0).item() == pytest.approx(expected, rel=1e-5)


def test_similar_figures_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher = torch.randn(5, 4)
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    student = (7 * F.pad(teacher, (0, 2)) @ turn + 3).requires_grad_()  # scale, rotation and position have no effect
    loss = rkd_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-4


def test_equal_features_are_differentiable():
    student = torch.ones(4, 3)
    student[3] = 2
    student.requires_grad_()
    loss = rkd_loss(student, torch.rand(4, 5))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().max() < 1e3


@pytest.mark.parametrize("squared", [False, True])
def test_collapsed_and_single_images_stay_finite(squared):
    for student in (torch.zeros(3, 4, requires_grad=True), torch.ones(1, 4, requires_grad=True)):
        loss = rkd_loss(student, torch.rand(len(student), 5), squared)
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = rkd_loss(student, teacher)
    torch.testing.assert_close(loss, rkd_loss(student, teacher), rtol=0, atol=0)


def test_total_loss_is_the_sum_of_its_definition():
    overrides = {"LOSS.CE_WEIGHT": "0.5", "LOSS.FEAT_WEIGHT": "3", "DISTANCE_WEIGHT": "2", "ANGLE_WEIGHT": "5"}
    overrides["PDIST.SQUARED"] = "True"
    distiller = build("RKD", *(part for key, value in overrides.items() for part in (f"RKD.{key}", value)))
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    expected = 3 * rkd_loss(student["pooled_feat"], teacher["pooled_feat"], True, 1e-12, 2.0, 5.0)
    torch.testing.assert_close(loss_kd, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("RKD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    assert distiller.get_extra_parameters() == 0
    check_student_deploys_alone(distiller)


def test_bad_epsilon():
    with pytest.raises(UserError, match=r"RKD.PDIST.EPSILON is 0.0; expected a number above 0"):
        build("RKD", "RKD.PDIST.EPSILON", "0")
