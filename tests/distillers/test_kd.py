import math

import pytest
import torch
import torch.nn.functional as F

from mdistiller.distillers import distiller_dict
from mdistiller.distillers.KD import KD, kd_loss
from mdistiller.engine.cfg import load_cfg
from mdistiller.models import build_model


def build():
    torch.manual_seed(0)
    return KD(build_model("resnet8", 5), build_model("resnet14", 5), load_cfg(None, [])).train()


def test_literal_value():
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[4 * math.log(3.0), 0.0]])  # at temperature 4: probabilities 3/4 and 1/4
    expected = 16 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert kd_loss(student, teacher, 4.0).item() == pytest.approx(expected, rel=1e-5)


def test_independent_computation():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 7), torch.randn(6, 7)
    expected = 0.0
    for s, t in zip(student.double(), teacher.double()):
        p, q = torch.exp(t / 2.5) / torch.exp(t / 2.5).sum(), torch.exp(s / 2.5) / torch.exp(s / 2.5).sum()
        expected += 2.5**2 * sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist())) / 6
    assert kd_loss(student, teacher, 2.5).item() == pytest.approx(expected, rel=1e-5)


def test_equal_logits_have_neither_loss_nor_gradient():
    teacher = torch.randn(4, 6)
    student = (teacher + 3.0).requires_grad_()  # softmax does not see a shift
    loss = kd_loss(student, teacher, 4.0)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad.abs().max() < 1e-6


def test_high_temperature_limit_is_half_the_squared_difference():
    torch.manual_seed(0)
    student, teacher = (x - x.mean(1, keepdim=True) for x in torch.randn(2, 3, 8).double())
    expected = (student - teacher).square().sum(1).mean() / (2 * 8)
    assert kd_loss(student.float(), teacher.float(), 200.0).item() == pytest.approx(expected.item(), rel=0.02)


def test_weights_and_reach():
    distiller = build()
    image, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    logits, losses = distiller(image=image, target=target)
    torch.testing.assert_close(losses["loss_ce"], 0.1 * F.cross_entropy(logits, target))
    torch.testing.assert_close(losses["loss_kd"], 0.9 * kd_loss(logits, distiller.teacher(image)[0], 4.0))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.get_learnable_parameters())
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_vanilla_is_cross_entropy():
    student = build_model("resnet8", 5)
    distiller = distiller_dict["NONE"](student).train()
    image, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    logits, losses = distiller(image=image, target=target)
    torch.testing.assert_close(losses["loss_ce"], F.cross_entropy(logits, target))
    assert list(losses) == ["loss_ce"]
    assert distiller.teacher is None
    assert len(distiller.get_learnable_parameters()) == len(list(student.parameters()))
