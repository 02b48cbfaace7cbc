"""What the report computes: literal values, and limits."""

import math

import pytest
import torch

from mdistiller.distillers._sfakd_head import SFAKDHead
from mdistiller.report.measures import (
    NUM_BINS,
    agreement,
    class_accuracy,
    paired_difference,
    principal_axes,
    radial_profile,
    reliability,
)
from mdistiller.report.sections.frequency import effective_filter


def logits_for(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_agreement_of_four_images():
    target = torch.tensor([0, 0, 1, 1])
    teacher = logits_for([0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4])
    student = logits_for([0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4])
    found = agreement(student, teacher, target)
    assert found[:5] == (0.5, 0.25, 0.25, 0.25, 0.25)
    divergence = sum(
        p * math.log(p / q)
        for one, other in (((0.8, 0.2), (0.3, 0.7)), ((0.7, 0.3), (0.2, 0.8)))
        for p, q in zip(one, other)
    )
    assert found.divergence == pytest.approx(divergence / 4)
    assert agreement(teacher, teacher, target).divergence == pytest.approx(0, abs=1e-12)


def test_reliability_of_four_images():
    logits = logits_for([0.95, 0.05], [0.95, 0.05], [0.45, 0.55], [0.6, 0.4])
    found = reliability(logits, torch.tensor([0, 1, 1, 1]))
    # bins of 1/15: 0.95 is in the last, 0.55 and 0.6 are in the ninth, (8/15, 9/15]
    assert found.counts == [0] * 8 + [2] + [0] * 5 + [2] and len(found.counts) == NUM_BINS
    assert found.accuracy[8] == 0.5 and found.accuracy[14] == 0.5 and math.isnan(found.accuracy[0])
    assert found.confidence[8] == pytest.approx(0.575) and found.confidence[14] == pytest.approx(0.95)
    assert found.ece == pytest.approx((0.075 * 2 + 0.45 * 2) / 4)
    assert (found.mean_accuracy, found.mean_confidence) == (0.5, pytest.approx(0.7625))
    assert found.nll == pytest.approx(-(math.log(0.95) + math.log(0.05) + math.log(0.55) + math.log(0.4)) / 4)


def test_a_certain_and_right_model_is_calibrated():
    found = reliability(torch.eye(3) * 1e4, torch.arange(3))
    assert found.ece == 0 and found.counts[-1] == 3


def test_accuracy_of_classes_without_images_is_unknown():
    logits = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    found = class_accuracy(logits, torch.tensor([0, 0, 1]))
    assert found[:2].tolist() == [0.5, 0.0] and found[2].isnan()


def test_paired_difference():
    right, reference = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()
    difference, half = paired_difference(right, reference)
    assert difference == pytest.approx(0.2)
    # b = 2 and c = 1 of n = 5: variance (b + c)/n − ((b − c)/n)²
    assert half == pytest.approx(1.96 * math.sqrt((3 / 5 - 1 / 25) / 5))
    assert paired_difference(right, right) == (0, 0)


def test_principal_axes_find_the_directions_of_the_variance():
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(200, 2, generator=generator) * torch.tensor([5.0, 1.0])
    directions = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q[:2]
    features = places @ directions + 3
    axes = principal_axes(features)
    assert torch.allclose((axes.axes.T @ directions.T).abs(), torch.eye(2), atol=0.05)
    found = axes.project(features)
    assert torch.allclose(found.var(0).sum(), features.var(0).sum()) and found.mean(0).abs().max() < 1e-4
    assert axes.axes.gather(0, axes.axes.abs().argmax(0, keepdim=True)).min() > 0


@pytest.mark.parametrize("shape", [(1, 5), (7, 1), (3, 2)])
def test_principal_axes_of_few_numbers(shape):
    features = torch.randn(shape)
    assert principal_axes(features).project(features).shape == (shape[0], 2)


def test_radial_profile():
    energy = torch.zeros(4, 4)
    energy[0, 0], energy[0, 1], energy[3, 0], energy[2, 2] = 5, 4, 8, 9
    # at distance 1 and √2, which rounds to 1: (±1, 0), (0, ±1), (±1, ±1), eight in all; at 2: (2, 0), (2, ±1) …, five
    assert radial_profile(energy).tolist() == [5, pytest.approx(12 / 8), 0, 9]


def test_the_filter_that_is_drawn_has_the_effect_of_the_branch():
    head = SFAKDHead(3, 4, 5, 6, 2)
    branch = head.projector.fusion.frequency
    torch.nn.init.normal_(branch.filter.weight)
    maps = torch.randn(2, 3, 4, 5)
    weight, mask = (torch.fft.ifftshift(value, dim=(-2, -1)) for value in effective_filter(head.projector.fusion))
    drawn = torch.fft.ifft2(torch.fft.fft2(maps) * weight * mask)
    assert torch.allclose(drawn.real, branch(maps), atol=1e-5) and drawn.imag.abs().max() < 1e-5
