"""MLKD: images, batch and classes at several temperatures; the paper's and the code's form; one view and two."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers.MLKD import batch_relation_loss, class_relation_loss, instance_loss, low_confidence_shares
from mdistiller.errors import UserError

TEMPERATURES = [4.0, 2.0, 3.0, 5.0, 6.0]
LOSSES = [instance_loss, batch_relation_loss, class_relation_loss]


def logits(seed=0, rows=4, columns=5):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(rows, columns, generator=generator) for _ in range(2)]


def predictions(values, temperature):
    return torch.softmax(values.double() / temperature, 1).tolist()


def test_instance_literal_value():
    teacher = 2 * torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    student = torch.zeros(2, 2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert instance_loss(student, teacher, [2.0]).item() == pytest.approx(expected / 2, rel=1e-4)


def test_relation_literal_values():
    student, teacher = torch.zeros(2, 2), torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    # student: Gram matrices of 1/2 everywhere; teacher: the identity; each entry differs by 1/2
    for loss in (batch_relation_loss, class_relation_loss):
        assert loss(student, teacher, [1.0]).item() == pytest.approx(4 * 0.25 / 2)


def test_instance_equals_a_loop():
    student, teacher = logits()
    total = 0.0
    for t in TEMPERATURES:
        for p, q in zip(predictions(teacher, t), predictions(student, t)):
            total += t * t * sum(a * math.log(a / b) for a, b in zip(p, q)) / 4
    assert instance_loss(student, teacher, TEMPERATURES).item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("loss", [batch_relation_loss, class_relation_loss])
def test_relations_equal_a_loop(loss):
    student, teacher = logits()
    total = 0.0
    for t in TEMPERATURES:
        p, q = predictions(teacher, t), predictions(student, t)
        if loss is class_relation_loss:
            p, q = [list(column) for column in zip(*p)], [list(column) for column in zip(*q)]
        for i in range(len(p)):
            for j in range(len(p)):
                error = sum(a * b for a, b in zip(p[i], p[j])) - sum(a * b for a, b in zip(q[i], q[j]))
                total += error**2 / len(p)
    assert loss(student, teacher, TEMPERATURES).item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_predictions_have_no_loss_and_no_gradient(loss):
    teacher, _ = logits()
    student = (teacher + torch.tensor([[1.0], [2.0], [3.0], [4.0]])).requires_grad_()
    value = loss(student, teacher, TEMPERATURES)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5


def test_one_temperature_is_kd():
    student, teacher = logits()
    kd = 16 * F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean")
    torch.testing.assert_close(instance_loss(student, teacher, [4.0]), kd)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_float32_under_autocast(loss):
    student, teacher = logits()
    expected = loss(student, teacher, TEMPERATURES)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher, TEMPERATURES), expected)


def test_shares_of_low_confidence_literal_values():
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    images, classes = low_confidence_shares(torch.log(probabilities))
    assert images.item() == pytest.approx(2 / 4)  # highest: 0.9, 0.4, 0.8, 0.5; the median is 0.65
    assert classes.item() == pytest.approx(2 / 3)  # sums: 1.6, 1.45, 0.95
    assert [share.item() for share in low_confidence_shares(torch.zeros(4, 6))] == [1, 1]  # all equal the median


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("views", ["one", "key", "pair"])
def test_total_loss_is_the_sum_of_its_definition(views, masked):
    distiller = build(
        "MLKD", "MLKD.LOSS.CE_WEIGHT", "0.3", "MLKD.LOSS.KD_WEIGHT", "0.7", "MLKD.CONFIDENCE_MASK", str(masked)
    )
    weak, target = batch()
    strong, _ = batch(seed=2)
    given = {
        "one": {"image": weak},
        "key": {"image": weak, "image_strong": strong},
        "pair": {"image": [weak, strong]},
    }[views]
    out, losses = distiller(**given, target=target, epoch=1)

    student, teacher = distiller.student(weak)[0], distiller.teacher(weak)[0]
    images, classes = (2 / 4, 4 / 7) if masked else (1, 1)
    ce, kd = F.cross_entropy(student, target), images * instance_loss(student, teacher, TEMPERATURES)
    if views != "one":
        second = distiller.student(strong)[0]
        ce = ce + F.cross_entropy(second, target)
        for t in TEMPERATURES:
            of_weak = masked and t in (2, 6)
            pair = (student, teacher) if of_weak else (second, distiller.teacher(strong)[0])
            kd = kd + instance_loss(*pair, [t])
    expected = {
        "loss_ce": 0.3 * ce,
        "loss_kd": 0.7 * kd,
        "loss_batch": 0.7 * images * batch_relation_loss(student, teacher, TEMPERATURES),
        "loss_class": 0.7 * classes * class_relation_loss(student, teacher, TEMPERATURES),
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)
    torch.testing.assert_close(out, student)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step(teacher, student):
    distiller = build("MLKD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    assert distiller.get_extra_parameters() == 0


def test_a_step_on_two_views():
    weak, target = batch()
    check_step(build("MLKD"), image=[weak, batch(seed=2)[0]], target=target, epoch=1)


def test_other_temperatures_of_the_codes_form():
    """`TEMPERATURE` itself always uses the strong view, and the extra temperatures need not include 2 or 6."""
    options = "MLKD.CONFIDENCE_MASK", "True", "MLKD.TEMPERATURE", "2", "MLKD.EXTRA_TEMPERATURES", "[7.0]"
    distiller = build("MLKD", *options)
    (weak, target), (strong, _) = batch(), batch(seed=2)
    _, losses = distiller(image=[weak, strong], target=target, epoch=1)
    expected = sum(
        factor * instance_loss(distiller.student(image)[0], distiller.teacher(image)[0], [2.0, 7.0])
        for factor, image in ((0.5, weak), (1, strong))
    )
    torch.testing.assert_close(losses["loss_kd"], 0.9 * expected)


def test_the_student_deploys_alone():
    check_student_deploys_alone(build("MLKD"))


def test_bad_options():
    for key, value in (("MLKD.EXTRA_TEMPERATURES", "[2, 0]"), ("MLKD.TEMPERATURE", "-1.0")):
        with pytest.raises(UserError, match=f"{re.escape(f'{key} is {value}')}; expected .*numbers? above 0"):
            build("MLKD", key, value)
