"""The exported network equals the student, without a Fourier transform or complex numbers."""

import copy

import pytest
import torch

from mdistiller.distillers._spectral import FrequencyBranch
from mdistiller.distillers.SFAKD import Fusion, SpatialBranch
from mdistiller.export.formats.inference_form import (
    _without_unused,
    circular_convolution,
    inference_form,
    real_fusion,
    without_fourier,
)
from tests.export.conftest import MEAN, SIZE, STD, build_student

SIZES = [(1, 1), (1, 6), (4, 4), (5, 4), (7, 7), (8, 8), (20, 17)]


def branch(size, mask="gaussian", learnable=False):
    made = FrequencyBranch(3, *size, 0.1, learnable, mask)
    torch.nn.init.normal_(made.filter.weight)  # not Hermitian: the imaginary part of the result is not zero
    return made


def by_definition(made, feature):
    """`Re(IFFT2(FFT2(F) ⊙ K ⊙ M))` with complex numbers, float64."""
    wide = copy.deepcopy(made).double()
    gain = torch.view_as_complex(wide.filter.weight) * wide.mask()
    return torch.fft.ifft2(torch.fft.fft2(feature, norm="ortho") * gain, norm="ortho").real


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", ["gaussian", "none"])
def test_the_frequency_branch_is_a_circular_convolution(size, mask):
    made = branch(size, mask).double()
    feature = torch.randn(2, 3, *size, dtype=torch.float64)
    found = circular_convolution(made, 0.3)(feature)
    torch.testing.assert_close(found, 0.3 * by_definition(made, feature), rtol=0, atol=1e-12)


def test_a_layer_whose_weights_are_used_without_a_call_stays():
    class Weights(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.idle = torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)

        def forward(self, image):
            return torch.nn.functional.linear(self.conv(image).mean((2, 3)), self.fc.weight.detach())

    class Calls(Weights):
        def forward(self, image):
            return self.fc(self.conv(image).mean((2, 3)))

    image = torch.rand(2, 3, 4, 4)
    for kind, idle in ((Weights, torch.nn.Linear), (Calls, torch.nn.Identity)):
        model = kind()
        expected = model(image)
        pruned = _without_unused(model, image)
        torch.testing.assert_close(pruned(image), expected)
        assert type(pruned.idle) is idle


def test_a_learned_sigma_and_a_hard_mask_are_part_of_the_kernel():
    feature = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    for made in (branch((12, 12), learnable=True).double(), branch((12, 12), "hard").double()):
        torch.testing.assert_close(
            circular_convolution(made)(feature), by_definition(made, feature), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(("frequency", "spatial"), [(True, True), (True, False), (False, True)])
def test_a_fusion_becomes_plain_convolutions(frequency, spatial):
    fusion = Fusion(branch((8, 8)) if frequency else None, SpatialBranch(3) if spatial else None).double()
    with torch.no_grad():
        for weight, value in ((fusion.alpha, 0.3), (fusion.beta, -0.7)):
            if weight is not None:
                weight.fill_(value)
    feature = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = sum(
        weight.detach() * part
        for weight, part in (
            (fusion.alpha, by_definition(fusion.frequency, feature) if frequency else None),
            (fusion.beta, fusion.spatial(feature) if spatial else None),
        )
        if weight is not None
    )
    torch.testing.assert_close(real_fusion(fusion)(feature), expected, rtol=0, atol=1e-6)  # float32 filter matrices
    if frequency and spatial:
        assert [type(module).__name__ for module in real_fusion(fusion)] == ["Conv2d", "CircularConvolution"]


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        *((arch, head) for arch in ("resnet8", "wrn_16_1") for head in (None, "SFAKD", "SIMKD")),
        *((arch, "SFAKD") for arch in ("vgg8", "MobileNetV2", "ShuffleV1")),
    ],
)
def test_the_network_equals_the_student(arch, head):
    student = build_student(head, arch, 32)
    before = copy.deepcopy(student.state_dict())
    network = inference_form(student, 32, MEAN, STD)
    image = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = student((image - mean) / std)
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    after = student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in network.parameters())


def test_nothing_is_left_of_fourier_transform_and_unused_classifier():
    student = build_student("SFAKD")
    network = inference_form(student, SIZE, MEAN, STD)
    assert not [module for module in network.modules() if isinstance(module, FrequencyBranch)]
    assert not [name for name, value in network.state_dict().items() if value.is_complex()]
    assert not [name for name, _ in network.named_parameters() if "backbone.fc" in name]
    assert "backbone.fc.weight" in dict(student.named_parameters())


def test_a_branch_outside_a_fusion_is_replaced_too():
    made = torch.nn.Sequential(branch((8, 8)), torch.nn.ReLU())
    feature = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(without_fourier(made)(feature), made(feature), rtol=1e-4, atol=1e-5)
    assert type(made[0]) is FrequencyBranch


def test_half_computes_in_float16_between_float32_images_and_logits():
    student = build_student("SFAKD")
    network = inference_form(student, SIZE, MEAN, STD, half=True)
    exact = inference_form(student, SIZE, MEAN, STD)
    assert {p.dtype for p in network.parameters()} == {torch.float16}
    image = torch.rand(4, 3, SIZE, SIZE)
    logits = network(image)
    assert logits.dtype == torch.float32
    difference = float((logits - exact(image)).abs().max() / exact(image).abs().max())
    assert 0 < difference < 0.02
