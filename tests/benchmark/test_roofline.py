"""The roofline model: known operation counts, known traffic, and the larger of the two times."""

import pytest
import torch
from torch import nn

from mdistiller.benchmark.hardware import Peak, measure_peak
from mdistiller.benchmark.roofline import Cost, measure_cost, step_cost


def test_a_convolution():
    convolution, image = nn.Conv2d(3, 8, 5, padding=2, bias=False), torch.randn(2, 3, 6, 6)
    products = 2 * 6 * 6 * 8 * 3 * 5 * 5  # images, places, channels out, channels in, kernel
    assert measure_cost(lambda: convolution(image)) == Cost(2 * products, 4 * (2 * 3 * 36 + 8 * 3 * 25 + 2 * 8 * 36))
    # twice as much with the gradient of the weights, three times with that of the image too
    assert measure_cost(lambda: convolution(image).sum().backward()).flops == 2 * 2 * products
    image.requires_grad_()
    assert measure_cost(lambda: convolution(image).sum().backward()).flops == 3 * 2 * products


def test_a_matrix_product():
    cost = measure_cost(lambda: torch.mm(torch.ones(2, 3), torch.ones(3, 5)).relu())
    assert cost == Cost(2 * 2 * 3 * 5, 4 * (2 * 3 + 3 * 5 + 2 * 5))


def test_the_larger_of_arithmetic_and_memory_time_counts():
    cost = Cost(flops=600.0, bytes=200.0)
    assert cost.min_seconds(Peak(flops=100.0, bandwidth=50.0)) == (6.0, "arithmetic")
    assert cost.min_seconds(Peak(flops=300.0, bandwidth=50.0)) == (4.0, "memory")


class Pair(nn.Module):
    """A distiller whose networks are one matrix product each: 4×7 for the teacher, 4×5 for the student."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(4, 5, bias=False), nn.Linear(4, 7, bias=False).requires_grad_(False)

    def get_learnable_parameters(self):
        return list(self.student.parameters())

    def forward(self, image, epoch):
        return None, {"loss": self.teacher(image).sum() - self.student(image), "other": self.student.weight.sum()}


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1), (torch.bfloat16, 0.5)])
def test_a_step(dtype, scale):
    batch = {"image": torch.ones(3, 4), "epoch": 1}
    state = 5 * 4 * (4 * 5)  # five passes in float32, in every precision
    teacher, student = 2 * 3 * 4 * 7, 2 * 3 * 4 * 5
    traffic_student = 4 * (3 * 4 + 4 * 5 + 3 * 5)  # the same three matrices forward and backward
    cached = step_cost(Pair(), batch, dtype, teacher_cached=True)
    assert cached == Cost(2 * student, 2 * traffic_student * scale + state)
    whole = step_cost(Pair(), batch, dtype, teacher_cached=False)
    assert whole == Cost(cached.flops + teacher, cached.bytes + 4 * (3 * 4 + 4 * 7 + 3 * 7) * scale)


def test_the_machine_is_measured():
    peak = measure_peak(torch.device("cpu"), torch.float32)
    assert 1e9 < peak.flops < 1e15
    assert 1e8 < peak.bandwidth < 1e13
