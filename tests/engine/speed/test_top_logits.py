"""Logits kept as the largest few and the probability of the rest."""

from __future__ import annotations

import math

import pytest
import torch

from mdistiller.distillers.KD import kd_loss
from mdistiller.engine.speed.top_logits import TopLogits


def test_literal_values() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    top = TopLogits(4, 2)
    assert top.width == 5
    largest, classes, other = top.encode(logits).split([2, 2, 1], dim=1)
    torch.testing.assert_close(largest, torch.tensor([[0.4, 0.3]]).log())
    assert classes.tolist() == [[1.0, 3.0]]
    torch.testing.assert_close(other, torch.tensor([[math.log(0.15)]]))  # of 0.1 + 0.2, half each
    torch.testing.assert_close(top.decode(top.encode(logits)).exp(), torch.tensor([[0.15, 0.4, 0.15, 0.3]]))


@pytest.mark.parametrize(("num_classes", "digits"), [(5, 1), (2048, 1), (2049, 2), (21_841, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_classes_are_exact_in_either_type(num_classes: int, digits: int, dtype: torch.dtype) -> None:
    logits = torch.randn(6, num_classes) * 3
    logits[:, -1] = 20
    top = TopLogits(num_classes, 4)
    assert top.width == 4 + 4 * digits + 1
    decoded = top.decode(top.encode(logits).to(dtype).float())
    assert decoded.shape == logits.shape
    assert torch.equal(decoded.topk(4).indices, logits.topk(4).indices)
    torch.testing.assert_close(decoded.topk(4).values, logits.topk(4).values, rtol=1e-3, atol=1e-3)


def test_probabilities_at_temperature_1_are_exact_in_the_kept_classes() -> None:
    logits = torch.randn(32, 100, dtype=torch.float64) * 3
    for number in (1, 10, 99):
        decoded = TopLogits(100, number).decode(TopLogits(100, number).encode(logits))
        chosen = logits.topk(number).indices
        exact, found = logits.softmax(1).gather(1, chosen), decoded.softmax(1).gather(1, chosen)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decoded, logits, rtol=1e-12, atol=1e-12)  # one class is left, and gets its own logit


@pytest.mark.parametrize(("temperature", "tolerance"), [(1.0, 0.01), (4.0, 0.2)])
def test_more_logits_change_the_loss_less(temperature: float, tolerance: float) -> None:
    teacher, student = torch.randn(64, 100) * 3, torch.randn(64, 100)
    exact = kd_loss(student, teacher, temperature, False)
    off = []
    for number in (2, 10, 50):
        top = TopLogits(100, number)
        off.append(float((kd_loss(student, top.decode(top.encode(teacher)), temperature, False) - exact).abs() / exact))
    assert off[0] > off[1] > off[2]
    assert off[2] < tolerance
