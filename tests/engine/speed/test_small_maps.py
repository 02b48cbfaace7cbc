"""Convolutions of small maps, side by side."""

import itertools

import pytest
import torch
from torch import nn

from mdistiller.engine.speed import precision, small_maps
from mdistiller.engine.speed.precision import Precision
from mdistiller.engine.speed.small_maps import convolve, faster_convolutions

BF16 = Precision("cpu", torch.bfloat16)
SHAPES = [
    # kernel, stride, padding, dilation
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (2, 2, 0, 1),
    (5, 1, 2, 1),
    (5, 3, 1, 1),
    (3, 1, 2, 2),
    (3, 1, 2, 1),
    ((3, 1), 1, (1, 0), 1),
    ((1, 3), (2, 1), (0, 1), 1),
]
NOT_SUITABLE = [  # of the output, some columns see only padding
    ((3, 1), 1, 1, 1),
    (2, 1, 2, 1),
]


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the images that are convolved."""
    seen = []
    original = small_maps.F.conv2d

    def conv2d(image, *args):
        seen.append(tuple(image.shape))
        return original(image, *args)

    monkeypatch.setattr(small_maps.F, "conv2d", conv2d)
    return seen


def smallest_side(kernel, padding, dilation):
    """The height or width of the smallest map that a kernel of this size fits."""
    return dilation * (kernel - 1) + 1 - 2 * padding


def fits(shape, size):
    kernel, _, padding, dilation = shape
    kernels, paddings = (value if isinstance(value, tuple) else (value, value) for value in (kernel, padding))
    return all(side >= smallest_side(k, p, dilation) for side, k, p in zip(size, kernels, paddings))


SIZES = [(1, 1), (2, 2), (4, 4), (5, 3), (3, 7), (14, 13)]
CASES = [(shape, size) for shape in SHAPES for size in SIZES if fits(shape, size)]


@pytest.mark.parametrize(("shape", "size"), CASES, ids=str)
def test_outputs_and_gradients_are_the_same(shape, size):
    kernel, stride, padding, dilation = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, kernel, stride, padding, dilation).double()
    image = torch.randn(4, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = conv(image)
    assert small_maps._is_suitable(conv)
    output = convolve(conv, image, conv.weight, conv.bias)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [image, conv.weight, conv.bias])
    found = torch.autograd.grad((output * weight).sum(), [image, conv.weight, conv.bias])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_images_lie_side_by_side(calls):
    conv = nn.Conv2d(3, 5, 3, padding=1)
    output = convolve(conv, torch.randn(6, 3, 4, 7), conv.weight, conv.bias)
    assert calls == [(1, 3, 4, 6 * 8)]
    assert output.shape == (6, 5, 4, 7) and output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(6, 3, 4, 8), (1, 3, 4, 4)], ids=["a wide map", "one image"])
def test_others_are_convolved_as_they_are(calls, shape):
    conv = nn.Conv2d(3, 5, 3, padding=1)
    convolve(conv, torch.randn(shape), conv.weight, conv.bias)
    assert calls == [shape]


def test_autocast_gives_bfloat16_and_the_same_numbers():
    conv, image = nn.Conv2d(16, 8, 3, padding=1), torch.randn(6, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected, output = conv(image), convolve(conv, image, conv.weight, conv.bias)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=2**-7, atol=1e-3)


def test_which_convolutions_are_replaced(monkeypatch):
    monkeypatch.setattr(small_maps, "cpu_has", lambda name: name == "amx_bf16")

    class Own(nn.Conv2d):
        pass

    wanted = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 2, stride=2)
    others = [
        nn.Conv2d(2, 2, 1),
        nn.Conv2d(2, 2, 3, padding=1, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3),
        *(nn.Conv2d(2, 2, *shape) for shape in NOT_SUITABLE),
        Own(2, 2, 3, padding=1),
        nn.ConvTranspose2d(2, 2, 3),
    ]
    model = nn.Sequential(*itertools.chain(wanted, others))
    replaced = faster_convolutions([model, model], BF16)
    assert [(module, name) for module, name, _ in replaced] == [(module, "_conv_forward") for module in wanted]


@pytest.mark.parametrize(
    "chosen, flags",
    [
        (Precision("cpu", None), "amx_bf16"),
        (Precision("cuda", torch.bfloat16), "amx_bf16"),
        (BF16, "avx512_bf16"),
    ],
    ids=["float32", "a GPU", "no AMX"],
)
def test_none_is_replaced(monkeypatch, chosen, flags):
    monkeypatch.setattr(small_maps, "cpu_has", lambda name: name == flags)
    assert faster_convolutions([nn.Conv2d(2, 2, 3, padding=1)], chosen) == []


def test_what_the_processor_has(monkeypatch):
    monkeypatch.setattr(precision.Path, "read_text", lambda path: "flags\t\t: fpu avx2 amx_bf16\n")
    precision.cpu_has.cache_clear()
    try:
        assert precision.cpu_has("amx_bf16") and not precision.cpu_has("avx512_bf16")
    finally:
        precision.cpu_has.cache_clear()
