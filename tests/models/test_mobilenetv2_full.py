"""Tiny-ImageNet's MobileNetV2 against MDistiller's, as recorded in `golden/tiny_mobilenetv2.json`."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from mdistiller.distillers.heads import Head
from mdistiller.models import build_model, load_weights
from mdistiller.models.cifar.mobilenetv2_full import PointwiseLinear
from tests.conftest import REPO

GOLDEN = json.loads((REPO / "tests/golden/tiny_mobilenetv2.json").read_text(encoding="utf-8"))


def published_weights():
    """The weights that the file describes, in the names and shapes of MDistiller's checkpoints."""
    state = {}
    for key, shape in GOLDEN["state"].items():
        random = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        if key.endswith("running_var"):
            values = random.uniform(0.5, 1.5, shape)
        elif key.endswith(("running_mean", "bias")):
            values = 0.1 * random.standard_normal(shape)
        elif len(shape) == 1:
            values = random.uniform(0.5, 1.5, shape)
        else:
            values = random.standard_normal(shape) * math.sqrt(2 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return state


@pytest.fixture(scope="module")
def model():
    return build_model("MobileNetV2", GOLDEN["num_classes"], "tiny_imagenet", GOLDEN["size"]).eval()


@pytest.fixture(scope="module")
def output(model):
    load_weights(model, published_weights(), "the golden file")
    size = GOLDEN["size"]
    image = np.random.RandomState(7).standard_normal((2, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        return model(torch.from_numpy(image))


def check(tensor, expected):
    """Compare a tensor with `[mean, std, first, middle, last]` of it, flattened."""
    flat = tensor.double().flatten()
    found = [flat.mean(), flat.std(), flat[0], flat[len(flat) // 2], flat[-1]]
    torch.testing.assert_close(torch.stack(found).tolist(), expected, rtol=1e-4, atol=2e-5)


def test_parameters_keys_and_shapes(model):
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_497_480
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == GOLDEN["state"]
    assert list(model.state_dict()) == list(GOLDEN["state"])


def test_logits(output):
    logits = output[0]
    torch.testing.assert_close(logits[0, :6].tolist(), GOLDEN["logits"][:6], rtol=1e-4, atol=2e-5)
    check(logits, GOLDEN["logits"][6:])


def test_maps_and_pooled_feature(model, output):
    feats = output[1]
    assert len(feats["feats"]) == len(GOLDEN["feats"])
    for feature, (shape, summary) in zip(feats["feats"], GOLDEN["feats"]):
        assert list(feature.shape) == shape
        check(feature, summary)
    shape, summary = GOLDEN["pooled"]
    assert list(feats["pooled_feat"].shape) == shape[:2]  # upstream's is a map of one pixel
    check(feats["pooled_feat"], summary)
    assert model.get_stage_channels() == [shape[1] for shape, _ in GOLDEN["feats"]]


def test_bn_before_relu_by_name(model):
    own_names = {module: key for key, module in model.named_modules()}
    norms = [own_names[norm] for norm in model.get_bn_before_relu()]
    assert norms == ["stage2.1.residual.7", "stage3.2.residual.7", "stage4.3.residual.7", "conv1.1"]


def test_a_pointwise_linear_is_a_convolution_in_state_dicts_only():
    torch.manual_seed(0)
    linear, again, convolution = PointwiseLinear(5, 3), PointwiseLinear(5, 3), nn.Conv2d(5, 3, 1)
    assert linear.weight.shape == (3, 5) and linear.state_dict()["weight"].shape == (3, 5, 1, 1)
    pooled = torch.randn(2, 5)
    convolution.load_state_dict(linear.state_dict())
    torch.testing.assert_close(convolution(pooled[:, :, None, None]).flatten(1), linear(pooled))
    for state in (convolution.state_dict(), dict(linear.named_parameters())):
        again.reset_parameters()
        again.load_state_dict(state)
        assert torch.equal(again.weight, linear.weight) and torch.equal(again.bias, linear.bias)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        again.load_state_dict({"weight": torch.zeros(3, 5, 3, 3), "bias": torch.zeros(3)})
    linear.state_dict()["weight"].zero_()  # it shares its memory, as entries of state dicts do
    assert not linear.weight.any()


def test_a_head_reuses_its_classifier(model):
    class Plain(Head):
        kind = "plain"

        def __init__(self, out_channels, num_classes, bias):
            super().__init__(nn.Identity(), out_channels, num_classes, bias, {})

    head = Plain.with_classifier(model.get_classifier())
    assert head.state_dict()["classifier.weight"].shape == (GOLDEN["num_classes"], 1280)
    assert torch.equal(head.classifier.weight, model.get_classifier().weight)
    assert not head.classifier.weight.requires_grad and model.get_classifier().weight.requires_grad
