"""Weights load completely or not at all, and a mismatch is reported in one line."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from mdistiller.errors import UserError
from mdistiller.models import build_model, load_weights


@pytest.fixture
def model():
    return build_model("resnet8", num_classes=10)


def same(state, other):
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


def test_fitting_weights(model):
    source = build_model("resnet8", num_classes=10)
    load_weights(model, source.state_dict(), "a.pth")
    assert same(model.state_dict(), source.state_dict())


def test_data_parallel_prefix(model):
    source = build_model("resnet8", num_classes=10)
    wrapped = nn.ModuleDict({"module": source}).state_dict()
    assert all(key.startswith("module.") for key in wrapped)
    load_weights(model, wrapped, "a.pth")
    assert same(model.state_dict(), source.state_dict())


def test_a_model_whose_own_keys_have_the_prefix(model):
    source = nn.ModuleDict({"module": build_model("resnet8", num_classes=10)})
    load_weights(nn.ModuleDict({"module": model}), source.state_dict(), "a.pth")
    assert same(model.state_dict(), source["module"].state_dict())


def test_checkpoint_without_batch_counters(model):
    source = build_model("resnet8", num_classes=10).state_dict()
    load_weights(model, {key: v for key, v in source.items() if "num_batches_tracked" not in key}, "old.pth")
    assert same(model.state_dict(), source)


def test_misfits_are_named_and_nothing_is_loaded(model):
    state = model.state_dict()
    before = copy.deepcopy(state)
    given = {key: value + 1 for key, value in state.items()}
    for key in ("bn1.bias", "bn1.weight", "bn1.running_mean", "bn1.running_var", "conv1.weight"):
        del given[key]
    given["fc.weight"] = torch.zeros(100, 64)
    given["linear.bias"] = torch.zeros(10)
    given["epoch"] = 240
    given["fc.bias"] = 0.5
    with pytest.raises(UserError) as raised:
        load_weights(model, given, "teachers/x.pth")
    assert str(raised.value) == (
        "the weights in teachers/x.pth do not fit ResNet; "
        "missing: conv1.weight, bn1.weight, bn1.bias and 2 more; "
        "unexpected: linear.bias, epoch; "
        "wrong shape: fc.weight [100, 64] (expected [10, 64]), fc.bias float (expected [10]); "
        "give a checkpoint of this model with as many classes, or name the model that it was saved from"
    )
    assert same(model.state_dict(), before)


def test_other_architecture(model):
    with pytest.raises(UserError, match=r"^[^\n]*missing: [^\n]*unexpected: [^\n]*$"):
        load_weights(model, build_model("vgg8", num_classes=10).state_dict(), "vgg8.pth")


def test_a_model_that_reads_the_version_of_its_layout():
    model = torchvision.models.mnasnet0_5(num_classes=3)
    source = torchvision.models.mnasnet0_5(num_classes=3)
    weights = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    load_weights(model, weights, "a.pth")
    assert same(model.state_dict(), source.state_dict())
