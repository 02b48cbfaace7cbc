"""What a distiller may rely on, for every model of this package."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.models import build_model
from tests.models.conftest import SMALL_MODELS

# sides of the maps in `feats` for an image of 32x32 pixels
SIDES = {
    "resnet": [32, 32, 16, 8],
    "ResNet": [32, 32, 16, 8, 4],
    "wrn": [32, 32, 16, 8],
    "vgg": [32, 16, 8, 4, 4],
    "MobileNetV2": [16, 16, 8, 4, 2],
    "FullMobileNetV2": [34, 17, 9, 5, 5],
    "Shuffle": [32, 16, 8, 4],
}
# families whose every stage ends in a BatchNorm and a ReLU, with nothing added in between
BN_MAKES_THE_MAP = ("wrn", "vgg", "ShuffleV2")


@pytest.fixture(scope="module", params=list(SMALL_MODELS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, vivid_model):
    return vivid_model(name).eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def output(model, image):
    with torch.no_grad():
        return model(image)


@pytest.fixture(scope="module")
def trained(name, vivid_model, image):
    """A model after one training step's forward and backward, its output, and the gradients of its stage maps."""
    model = vivid_model(name).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
    logits, feats = model(image)
    grads = torch.autograd.grad(logits.square().sum(), feats["feats"], retain_graph=True, allow_unused=True)
    logits.square().sum().backward()
    return model, feats, grads


def family_of(name, table):
    return next((value for value in table if name.startswith(value)), None)


def test_shapes_and_stage_channels(name, model, output):
    logits, feats = output
    assert logits.shape == (2, 7)
    assert set(feats) == {"feats", "preact_feats", "final_map", "pooled_feat"}
    channels = model.get_stage_channels()
    sides = SIDES[family_of(name, SIDES)]
    assert [tuple(f.shape) for f in feats["feats"]] == [(2, c, s, s) for c, s in zip(channels, sides)]
    assert [f.shape for f in feats["preact_feats"]] == [f.shape for f in feats["feats"]]
    assert len(feats["feats"]) == len(channels) == len(sides)
    assert all(f.is_contiguous() for f in feats["feats"] + feats["preact_feats"])  # distillers call `view` on them
    assert feats["pooled_feat"].shape == (2, model.get_classifier().in_features)


def test_preacts_are_the_maps_before_their_relu(name, model, output):
    feats, preacts = output[1]["feats"], output[1]["preact_feats"]
    if name.startswith("wrn"):
        norms = model.get_bn_before_relu()
        assert feats[0] is preacts[0]
        assert all(torch.equal(norm(f), p) for norm, f, p in zip(norms, feats[1:], preacts[1:]))
    elif name == "MobileNetV2":
        assert torch.equal(F.relu(preacts[0]), feats[0])
        assert all(p is f for p, f in zip(preacts[1:], feats[1:]))
        assert min(f.min() for f in feats[1:]) < 0
    elif name == "FullMobileNetV2":
        assert all(torch.equal(F.relu6(preacts[end]), feats[end]) for end in (0, -1))
        assert all(p is f for p, f in zip(preacts[1:-1], feats[1:-1]))
        assert min(f.min() for f in feats[1:-1]) < 0 == feats[-1].min()
    else:
        assert all(torch.equal(F.relu(p), f) for p, f in zip(preacts, feats))
        assert all(p.min() < 0 for p in preacts)


def test_final_map(name, output):
    feats = output[1]
    if name.startswith("wrn"):
        assert torch.equal(feats["final_map"], F.relu(feats["preact_feats"][-1]))
    else:
        assert feats["final_map"] is feats["feats"][-1]


def test_classifier_consumes_the_pooled_feature(model, output):
    logits, feats = output
    classifier = model.get_classifier()
    assert isinstance(classifier, nn.Linear)
    assert torch.equal(F.linear(feats["pooled_feat"], classifier.weight, classifier.bias), logits)


def test_two_halves_make_the_whole(model, image, output):
    with torch.no_grad():
        stages = model.forward_stages(image)
        logits, pooled = model.forward_tail(stages.final_map)
    assert torch.equal(logits, output[0])
    assert torch.equal(pooled, output[1]["pooled_feat"])
    assert all(torch.equal(a, b) for a, b in zip(stages.feats, output[1]["feats"]))


def test_every_batch_norm_runs_once_a_step(trained):
    norms = [module for module in trained[0].modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.num_batches_tracked.item() for norm in norms} == {1}


def test_every_parameter_gets_a_gradient(trained):
    model, _, _ = trained
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_logits_depend_on_the_very_maps_handed_out(trained):
    assert all(grad is not None and grad.abs().sum() > 0 for grad in trained[2])


def test_bn_before_relu(name, trained):
    model, feats, _ = trained
    norms = model.get_bn_before_relu()
    assert [norm.num_features for norm in norms] == model.get_stage_channels()[1:]
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    if family_of(name, BN_MAKES_THE_MAP):
        for norm, preact in zip(norms, feats["preact_feats"][1:]):
            # the mean of a BatchNorm's output in training mode is its bias
            torch.testing.assert_close(preact.mean((0, 2, 3)), norm.bias, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(28, 28), (40, 32), (32, 64), (64, 64)])
def test_other_sizes(model, size):
    with torch.no_grad():
        logits, feats = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()
    assert [f.shape[1] for f in feats["feats"]] == model.get_stage_channels()


def test_channels_last_gives_the_same(name, vivid_model, image, output):
    model = vivid_model(name).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        logits, feats = model(image.contiguous(memory_format=torch.channels_last))
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in feats["feats"])
    scale = output[0].abs().max()
    torch.testing.assert_close(logits / scale, output[0] / scale, atol=1e-4, rtol=0)
    for ours, theirs in zip(feats["preact_feats"], output[1]["preact_feats"]):
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), atol=1e-4, rtol=0)


def test_seed_sets_the_weights():
    for name in ("resnet8", "ResNet18", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"):
        states = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            states.append(build_model(name, num_classes=5).state_dict())
        first, again, other = states
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet14", ["layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2"]),
        ("ResNet18", ["layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2", "layer4.1.bn2"]),
        ("ResNet50", ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]),
        ("wrn_16_1", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("vgg13", ["block1.4", "block2.4", "block3.4", "block4.4"]),
        ("MobileNetV2", ["blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7"]),
        ("ShuffleV1", ["layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"]),
    ],
)
def test_bn_before_relu_by_name(name, norms):
    model = build_model(name, num_classes=2)
    own_names = {module: key for key, module in model.named_modules()}
    assert [own_names[norm] for norm in model.get_bn_before_relu()] == norms


def test_vgg_pools_a_fourth_time_from_64_pixels_on(vivid_model):
    model = vivid_model("vgg8").eval()
    with torch.no_grad():
        sides = {side: model(torch.randn(1, 3, side, side))[1]["final_map"].shape[-1] for side in (32, 48, 64, 96)}
    assert sides == {32: 4, 48: 6, 64: 4, 96: 6}


def test_shufflenetv2_bn_is_a_copy_in_the_maps_order(vivid_model):
    model = vivid_model("ShuffleV2")
    norm = model.get_bn_before_relu()[0]
    down, *blocks = model.layer1
    sources = {"left": down.bn2, "right": down.bn5, "0": blocks[0].bn3, "1": blocks[1].bn3, "2": blocks[2].bn3}
    # each unit's two halves interleave: the last one's convolutions make the odd channels, and of the 58 that pass it,
    # which are the first half of what the unit before it put out, every other one is that unit's
    origins = [(0, "left", 0), (1, "2", 0), (2, "1", 0), (4, "0", 0), (6, "1", 1), (8, "right", 0), (115, "2", 57)]
    for channel, source, own_channel in origins:
        for value in ("weight", "bias", "running_mean", "running_var"):
            assert getattr(norm, value)[channel] == getattr(sources[source], value)[own_channel], (channel, value)
    assert not norm.weight.requires_grad
    norm.weight.zero_()
    assert all(source.weight.abs().min() > 0 for source in sources.values())
