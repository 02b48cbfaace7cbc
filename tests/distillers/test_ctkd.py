"""CTKD: a temperature that increases the loss, by a curriculum."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers.CTKD import GlobalTemperature, cosine_curriculum, kd_loss, reverse_gradient
from mdistiller.errors import UserError


def test_curriculum_literal_values():
    values = [cosine_curriculum(epoch, 10.0, 0.0, 1.0) for epoch in (0, 5, 10, 240)]
    assert values == pytest.approx([0, 0.5, 1, 1])
    assert cosine_curriculum(1, 10.0, 0.0, 1.0) == pytest.approx((1 - math.cos(math.pi / 10)) / 2)
    assert cosine_curriculum(5, 10.0, 0.2, 0.6) == pytest.approx(0.4)


def test_reversal_keeps_the_value_and_turns_the_gradient():
    x = torch.tensor(0.3, requires_grad=True)
    out = reverse_gradient(x, 0.25)
    assert torch.equal(out, x)
    (3 * out).backward()
    assert x.grad.item() == pytest.approx(-0.75)


def test_temperature_starts_and_stays_in_its_range():
    temperature = GlobalTemperature(1.0, 20.0)
    assert temperature(1.0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    for raw, expected in ((-100.0, 1.0), (100.0, 21.0)):
        with torch.no_grad():
            temperature.raw.fill_(raw)
        assert temperature(1.0).item() == pytest.approx(expected)


def test_loss_literal_value():
    teacher = 2 * torch.log(torch.tensor([[0.75, 0.25]]))  # (3/4, 1/4) at T = 2
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kd_loss(torch.zeros(1, 2), teacher, torch.tensor(2.0)).item() == pytest.approx(expected)


def test_loss_and_its_slope_in_temperature_equal_a_loop():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5), 2 * torch.randn(3, 5)

    def reference(t):
        total = 0.0
        for s, z in zip(student.double().tolist(), teacher.double().tolist()):
            p, q = ([math.exp(v / t) for v in row] for row in (z, s))
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            total += sum(a * math.log(a / b) for a, b in zip(p, q))
        return t * t * total / 3

    temperature = torch.tensor(3.0, requires_grad=True)
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(reference(3.0), rel=1e-4)
    assert temperature.grad.item() == pytest.approx((reference(3.001) - reference(2.999)) / 0.002, rel=1e-3)


def test_equal_logits_have_no_loss_and_no_gradient():
    teacher = torch.randn(3, 5)
    student, temperature = teacher.clone().requires_grad_(), torch.tensor(4.0, requires_grad=True)
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5
    assert abs(temperature.grad.item()) < 1e-5


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("CTKD", "CTKD.LOSS.CE_WEIGHT", "0.3", "CTKD.LOSS.KD_WEIGHT", "0.7")
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=3)
    temperature = torch.tensor(1 + 20 / (1 + math.exp(-1)))
    assert set(losses) == {"loss_ce", "loss_kd"}
    torch.testing.assert_close(losses["loss_ce"], 0.3 * F.cross_entropy(logits, target))
    torch.testing.assert_close(losses["loss_kd"], 0.7 * kd_loss(logits, distiller.teacher(image)[0], temperature))


@pytest.mark.parametrize(("epoch", "strength"), [(0, 0.0), (5, 0.5), (10, 1.0), (240, 1.0)])
def test_the_temperature_climbs_the_loss_ever_harder(epoch, strength):
    distiller = build("CTKD")
    with torch.no_grad():  # logits far apart; otherwise the slope is lost in float32's rounding
        distiller.teacher.fc.weight.mul_(100)
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=epoch)
    losses["loss_kd"].backward()

    sigmoid = 1 / (1 + math.exp(-1))
    temperature = torch.tensor(1 + 20 * sigmoid, requires_grad=True)
    kd_loss(logits.detach(), distiller.teacher(image)[0], temperature).backward()
    slope = 0.9 * temperature.grad.item() * 20 * sigmoid * (1 - sigmoid)
    assert slope != 0
    assert distiller.temperature.raw.grad.item() == pytest.approx(-strength * slope, rel=1e-3)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step(teacher, student):
    distiller = build("CTKD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    assert distiller.get_extra_parameters() == 1


def test_the_student_deploys_alone():
    check_student_deploys_alone(build("CTKD"))


def test_bad_options():
    with pytest.raises(UserError, match=r"CTKD\.LOOPS is 0\.0; expected a number above 0"):
        build("CTKD", "CTKD.LOOPS", "0")
