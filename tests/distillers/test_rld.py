"""RLD: sample confidence and masked correlation."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers.RLD import masked_correlation_loss, sample_confidence_loss
from mdistiller.errors import UserError


def softmax(values, temperature):
    weights = [math.exp(v / temperature) for v in values]
    return [w / sum(weights) for w in weights]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def test_sample_confidence_literal_value():
    teacher = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    student = torch.log(torch.tensor([[0.5, 0.4, 0.1]]))
    # the teacher's 0.7 is of class 0; the student is compared by its 0.4 for the label, class 1
    expected = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    assert sample_confidence_loss(student, teacher, torch.tensor([1]), 1.0).item() == pytest.approx(expected)


def test_masked_correlation_literal_value():
    teacher = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    student = torch.log(torch.tensor([[0.1, 0.2, 0.35, 0.35]]))
    # label 1: the classes 0 and 1 are out, (2/3, 1/3) and (1/2, 1/2) are left
    expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert masked_correlation_loss(student, teacher, torch.tensor([1]), 1.0).item() == pytest.approx(expected, rel=1e-4)


def test_losses_equal_loops():
    torch.manual_seed(0)
    student, teacher, target = torch.randn(8, 6), 2 * torch.randn(8, 6), torch.randint(6, (8,))
    confidence = correlation = 0.0
    for s, t, label in zip(student.double().tolist(), teacher.double().tolist(), target.tolist()):
        b_t, b_s = max(softmax(t, 4)), softmax(s, 4)[label]
        confidence += divergence((b_t, 1 - b_t), (b_s, 1 - b_s))
        left = [j for j in range(6) if t[j] < t[label]]
        if left:
            correlation += divergence(softmax([t[j] for j in left], 4), softmax([s[j] for j in left], 4))
    given = [loss(student, teacher, target, 4.0).item() for loss in (sample_confidence_loss, masked_correlation_loss)]
    assert given == pytest.approx([16 * confidence / 8, 16 * correlation / 8], rel=1e-4)


def test_a_right_teacher_leaves_the_parts_of_kd():
    """KD = confidence + (1 − b_T) · correlation if the teacher is right, as derived for DKD."""
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 6), torch.randn(1, 6)
    target = teacher.argmax(1)
    rest = 1 - torch.softmax(teacher, 1).max()
    parts = [loss(student, teacher, target, 1.0) for loss in (sample_confidence_loss, masked_correlation_loss)]
    kd = F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")
    torch.testing.assert_close(parts[0] + rest * parts[1], kd)


@pytest.mark.parametrize("loss", [sample_confidence_loss, masked_correlation_loss])
def test_equal_logits_of_a_right_teacher_have_no_loss_and_no_gradient(loss):
    teacher = torch.randn(4, 6)
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher, teacher.argmax(1), 4.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5


def test_masked_classes_feel_nothing():
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    student = torch.randn(2, 4, requires_grad=True)
    loss = masked_correlation_loss(student, teacher, torch.tensor([1, 3]), 4.0)  # the second image has no such class
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    assert torch.equal(student.grad != 0, torch.tensor([[False, False, True, True], [False] * 4]))


def test_certain_predictions_stay_finite():
    teacher, student = torch.tensor([[300.0, -300.0, 0.0]]), torch.tensor([[-300.0, 300.0, 0.0]], requires_grad=True)
    for loss in (sample_confidence_loss, masked_correlation_loss):
        value = loss(student, teacher, torch.tensor([0]), 1.0)
        (grad,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert grad.isfinite().all()


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("RLD", "RLD.CE_WEIGHT", "0.5", "RLD.ALPHA", "2", "RLD.BETA", "3")
    image, target = batch()
    teacher = distiller.teacher(image)[0]
    for epoch, warmup in ((5, 0.25), (20, 1.0), (240, 1.0)):
        logits, losses = distiller(image=image, target=target, epoch=epoch)
        assert set(losses) == {"loss_ce", "loss_scd", "loss_mcd"}
        torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(logits, target))
        expected = [loss(logits, teacher, target, 4.0) for loss in (sample_confidence_loss, masked_correlation_loss)]
        torch.testing.assert_close(losses["loss_scd"], warmup * 2 * expected[0])
        torch.testing.assert_close(losses["loss_mcd"], warmup * 3 * expected[1])


@pytest.mark.parametrize(("key", "expected"), [("None", 3.0), ("1", 1.0), ("2.5", 2.5)])
def test_the_sample_confidence_has_a_temperature_of_its_own(key, expected):
    distiller = build("RLD", "RLD.TEMPERATURE", "3", "RLD.ALPHA_TEMPERATURE", key)
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=20)
    teacher = distiller.teacher(image)[0]
    torch.testing.assert_close(losses["loss_scd"], sample_confidence_loss(logits, teacher, target, expected))
    torch.testing.assert_close(losses["loss_mcd"], 8 * masked_correlation_loss(logits, teacher, target, 3.0))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step(teacher, student):
    distiller = build("RLD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    assert distiller.get_extra_parameters() == 0


def test_the_student_deploys_alone():
    check_student_deploys_alone(build("RLD"))


def test_bad_options():
    with pytest.raises(UserError, match=r"RLD\.TEMPERATURE is 0\.0; expected a number above 0"):
        build("RLD", "RLD.TEMPERATURE", "0")
    with pytest.raises(UserError, match=r"RLD\.ALPHA_TEMPERATURE is 0; expected a number above 0, or None for"):
        build("RLD", "RLD.ALPHA_TEMPERATURE", "0")
