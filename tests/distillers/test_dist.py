"""DIST: Pearson distances of softened predictions, along images and along classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers.DIST import dist_losses, pearson_distance
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError


def test_pearson_distance_literal_values():
    rows = torch.tensor([[1.0, 2.0, 3.0]])
    assert pearson_distance(rows, torch.tensor([[30.0, 20.0, 10.0]])).item() == pytest.approx(2)
    assert pearson_distance(rows, torch.tensor([[5.0, 9.0, 13.0]])).item() == pytest.approx(0, abs=1e-6)
    assert pearson_distance(rows, torch.tensor([[1.0, 3.0, 2.0]])).item() == pytest.approx(0.5)
    both = pearson_distance(rows.repeat(2, 1), torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]))
    assert both.item() == pytest.approx(1)


def test_losses_equal_numpys_correlations():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 5) * 2
    inter, intra = dist_losses(student, teacher, tau=4.0)
    p, q = (np.exp(x.double().numpy() / 4) for x in (student, teacher))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    rows = [np.corrcoef(p[i], q[i])[0, 1] for i in range(6)]
    columns = [np.corrcoef(p[:, j], q[:, j])[0, 1] for j in range(5)]
    assert inter.item() == pytest.approx(16 * (1 - np.mean(rows)), rel=1e-4)
    assert intra.item() == pytest.approx(16 * (1 - np.mean(columns)), rel=1e-4)


def test_equal_predictions_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher = torch.randn(4, 5)
    student = (teacher + torch.randn(4, 1)).requires_grad_()  # a shift per image leaves the prediction as it is
    for loss in dist_losses(student, teacher, tau=1.0):
        (grad,) = torch.autograd.grad(loss, student, retain_graph=True)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert grad.abs().max() < 1e-5


def test_matched_up_to_scale_costs_nothing_between_classes():
    prediction = torch.softmax(torch.randn(4, 5), 1)
    flatter = 0.5 * prediction + 0.1
    assert pearson_distance(flatter, prediction).item() == pytest.approx(0, abs=1e-5)


def test_constant_rows_are_uncorrelated_and_differentiable():
    student = torch.zeros(2, 3, requires_grad=True)
    inter, intra = dist_losses(student, torch.randn(2, 3), tau=1.0)
    assert inter.item() == pytest.approx(1)
    (inter + intra).backward()
    assert student.grad.isfinite().all()


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("DIST", "DIST.CE_WEIGHT", "0.5", "DIST.BETA", "2", "DIST.GAMMA", "3", "DIST.TAU", "4")
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=1)
    inter, intra = dist_losses(logits, distiller.teacher(image)[0], 4.0)
    assert set(losses) == {"loss_ce", "loss_inter", "loss_intra"}
    torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(logits, target))
    torch.testing.assert_close(losses["loss_inter"], 2 * inter)
    torch.testing.assert_close(losses["loss_intra"], 3 * intra)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step(teacher, student):
    distiller = build("DIST", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    assert distiller.get_extra_parameters() == 0


def test_the_student_deploys_alone():
    check_student_deploys_alone(build("DIST"))


def test_published_cifar_values():
    options = load_cfg("configs/cifar100/dist/res32x4_res8x4.yaml").DIST
    assert (options.CE_WEIGHT, options.BETA, options.GAMMA, options.TAU) == (1, 2, 2, 4)


def test_bad_options():
    with pytest.raises(UserError, match=r"DIST\.TAU is 0\.0; expected a number above 0"):
        build("DIST", "DIST.TAU", "0")
