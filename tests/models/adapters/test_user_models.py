"""Users' own models by name: found, called with arguments, and their outputs read from a graph or by hooks."""

from __future__ import annotations

import copy
import re
import sys

import numpy as np
import pytest
import torch

from mdistiller.engine.speed.fold_batchnorm import fold_batchnorm
from mdistiller.errors import UserError
from mdistiller.models import build_model, may_build
from mdistiller.models.adapters.hooked import HookedModel
from mdistiller.models.adapters.traced import TracedModel
from tests.conftest import REPO

FILE = REPO / "tests/models/adapters/made_models.py"


def build(name, features=None, **arguments):
    torch.manual_seed(0)
    return build_model(f"{FILE}:{name}", 5, "imagefolder", 32, arguments, features)


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


MAPS = [(8, 32), (8, 32), (16, 16), (32, 8)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "maps"),
    [
        ("Net", TracedModel, MAPS),
        ("make_model", TracedModel, MAPS),
        ("Remembering", TracedModel, MAPS),
        ("Padded", TracedModel, [*MAPS[:2], (16, 17), (32, 9)]),
        ("Tokens", TracedModel, [(32, 8)] * 5),
        ("Deciding", HookedModel, MAPS),
        ("Wrapped", HookedModel, MAPS),
        ("Skipping", HookedModel, [MAPS[0], *MAPS[2:]]),
        ("Viewing", HookedModel, MAPS),
    ],
)
def test_outputs(name, kind, maps, training):
    model = build(name).train(training)
    assert isinstance(model, kind)
    torch.manual_seed(2)
    logits, feats = model(images())
    assert [(feat.shape[1], feat.shape[2]) for feat in feats["feats"]] == maps
    assert model.get_stage_channels() == [channels for channels, _ in maps]
    assert [feat.shape for feat in feats["preact_feats"]] == [feat.shape for feat in feats["feats"]]
    assert torch.equal(feats["final_map"], feats["feats"][-1])
    torch.testing.assert_close(model.get_classifier()(feats["pooled_feat"]), logits)
    torch.manual_seed(2)
    own = super(kind, model).forward(images()) if kind is TracedModel else None
    if own is not None:  # `AdaptedModel.forward` calls the model's own
        torch.testing.assert_close(own[0], logits)
    logits.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if name != "Skipping" or "stage1" not in n)


@pytest.mark.parametrize("name", ["SkippingByNumPy", "Counting"])
def test_what_changes_from_call_to_call_is_not_frozen(name):
    model = build(name).train()
    assert isinstance(model, HookedModel)
    np.random.seed(0)
    assert len({float(model(images())[0].sum().detach()) for _ in range(8)}) > 1


def test_a_graph_shows_the_maps_before_and_after_their_activation():
    model = build("Net").eval()
    _, feats = model(images())
    for preact, feat in zip(feats["preact_feats"], feats["feats"]):
        assert (preact < 0).any()
        assert torch.equal(preact.relu(), feat)
    assert model.get_bn_before_relu() == [model.stage1[1].norm, model.stage2[1].norm, model.stage3.norm]
    torch.testing.assert_close(feats["final_map"].mean((2, 3)), feats["pooled_feat"])
    torch.testing.assert_close(model.forward_tail(feats["final_map"])[0], model(images())[0])


def test_tokens_become_a_map_without_the_class_token():
    model = build("Tokens").eval()
    _, feats = model(images())
    normed = model.norm(model.layers(torch.cat([model.token.expand(2, -1, -1), _embedded(model)], 1)))
    torch.testing.assert_close(feats["final_map"], normed[:, 1:].transpose(1, 2).unflatten(2, (8, 8)))
    torch.testing.assert_close(feats["pooled_feat"], normed[:, 0])
    assert not model.has_tail  # the class token is not in the map


def _embedded(model):
    return model.embed(images()).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("name", ["Net", "Deciding", "Tokens"])
def test_keys_copies_and_the_inference_form(name):
    model = build(name).eval().requires_grad_(False)
    torch.manual_seed(0)
    sys.modules[type(model).__module__]  # the class says where it is from
    assert not [key for key in model.state_dict() if key.startswith(("module.", "model."))]
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    logits, feats = copied(images())
    assert logits.any()
    folded, count = fold_batchnorm(copied, 32)
    assert count == (0 if name == "Tokens" else 5)
    torch.testing.assert_close(folded(images())[1]["final_map"], feats["final_map"])
    assert folded.get_classifier() is not copied.get_classifier()


def test_logits_of_no_linear_layer_stay_alone():
    model = build("Hidden").eval()
    logits, feats = model(images())
    assert logits.shape == (2, 5)
    with pytest.raises(
        UserError, match="Hidden gives no 'pooled_feat', .*not the output of an nn.Linear with 5 outputs"
    ):
        feats["pooled_feat"]


@pytest.mark.parametrize("name", ["Net", "Deciding"])
def test_features_that_the_user_names(name):
    given = {"classifier": "head", "final_map": "stage2", "feats": ["stage1.0", "stage2"]}
    model = build(name, given).eval()
    _, feats = model(images())
    assert [feat.shape[1] for feat in feats["feats"]] == [8, 16]
    assert feats["final_map"].shape == (2, 16, 16, 16)
    assert feats["pooled_feat"].shape == (2, 32)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"final_map": "stage9"}, "'stage9'"),
        ({"final_map": "head"}, "'head'"),
        ({"feats": ["stage1.0.conv", "stage2"]}, "'stage1.0.conv'"),
        ({"classifier": "stem"}, "not the output of the nn.Linear stem"),
        ({"feats": "stage1"}, "have feats: 'stage1'; expected {classifier: NAME"),
        ({"maps": ["stage1"]}, "have maps: "),
    ],
)
def test_features_that_are_not_there(features, message):
    with pytest.raises(UserError, match=f"the features of .*made_models.py:Net.*{message}") as caught:
        build("Net", features)
    assert "\n" not in str(caught.value)


def test_arguments():
    assert build("Net", width=4).head.in_features == 16
    assert build("make_model", width=4).head.in_features == 16
    with pytest.raises(UserError, match="constructor of .*:Net fails with num_classes=5, depth=3 .*'depth'"):
        build("Net", depth=3)
    with pytest.raises(UserError, match="contain num_classes, which is always that of the data set"):
        build("Net", num_classes=3)
    with pytest.raises(UserError, match=r"gives logits \[2, 10\] for two images; expected \[2, 5\]"):
        build("ten_classes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.py:make", "no file at gone.py; a model of your own is named path/to/file.py:make_model"),
        (f"{FILE}:gone", "has no 'gone', which .* names; it defines Block, Net"),
        (f"{FILE}:number", "is a int; expected a function or class"),
        (
            f"{FILE}:fails",
            "constructor of .*:fails fails with num_classes=5 .RuntimeError: no such weights.*made_models",
        ),
        ("gone_package.models:make", "needs the module gone_package, which cannot be imported here; install it"),
        ("torch.nn:Gone", "torch.nn has no 'Gone'"),
        ("torch.nn:Linear", "the constructor of torch.nn:Linear fails with no arguments .TypeError"),
        ("torch.nn:init.zeros_", "the constructor of torch.nn:init.zeros_ fails"),
        ("broken.py:make", "broken.py cannot be imported .*SyntaxError"),
    ],
)
def test_names_that_do_not_lead_to_a_model(name, message, tmp_path):
    (tmp_path / "broken.py").write_text("def make(:")
    with pytest.raises(UserError, match=message) as caught:
        build_model(name, 5, "imagefolder", 32)
    assert "\n" not in str(caught.value)


def test_a_file_imports_its_neighbors(tmp_path, registries_as_before):
    (tmp_path / "part_of_it.py").write_text("from torch import nn\nlayer = nn.Linear\n")
    (tmp_path / "whole.py").write_text(
        "from torch import nn\nimport part_of_it\n\n\ndef make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " part_of_it.layer(4, num_classes))\n"
    )
    model = build_model("whole.py:make", 5, "imagefolder", 32)
    assert model.get_classifier() is model[3]
    assert model.eval()(images())[1]["final_map"].shape == (2, 4, 30, 30)


def test_a_part_without_gradients_gets_none():
    model = build("HalfFrozen").train()
    assert isinstance(model, HookedModel)
    model(images())[0].sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"head.weight", "head.bias"}


def test_a_part_without_autocast_stays_in_float32():
    model = build("PartlyFloat32")
    assert isinstance(model, HookedModel)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images())[1]["final_map"].dtype == torch.float32


def test_a_tensor_that_only_training_creates():
    model = build("Scaling").train()
    assert isinstance(model, HookedModel)
    model(images())[0].sum().backward()


@pytest.mark.parametrize("name", [f"{FILE}:Pair", "resnet8"])
def test_features_of_a_model_that_returns_them_are_refused(name):
    with pytest.raises(UserError, match=f"{re.escape(name)} returns its own maps; leave STUDENT_FEATURES"):
        build_model(name, 5, "imagefolder", 32, features={"final_map": "nonsense"})


@pytest.mark.parametrize(
    ("name", "recorded", "expected"),
    [
        ("new/nets.py:Net", "old/nets.py:Net", True),
        ("new/nets.py:Net", "old/nets.py:Other", False),
        ("nets.py:Net", "python:student.Net", True),
        ("package.nets:Net", "python:teacher.Net", True),
        ("nets.py:make", "python:student.Net", False),
        ("resnet8", "python:student.resnet8", False),
    ],
)
def test_what_code_may_build_a_recorded_model(name, recorded, expected):
    assert may_build(name, recorded) is expected


def test_maps_before_an_activation_in_place():
    feats = build("InPlace")(images())[1]
    for before, after in zip(feats["preact_feats"][-2:], feats["feats"][-2:]):
        assert before.min() < 0
        assert torch.equal(before.relu(), after)


@pytest.mark.parametrize("name", ["SwitchingInTraining", "AskingForAutocast"])
def test_autocast_is_what_the_model_makes_of_it(name):
    assert isinstance(build(name), HookedModel)


@pytest.mark.parametrize("name", ["Net", "Deciding"])
def test_maps_after_the_final_map_are_refused(name):
    with pytest.raises(UserError, match="'stage3'"):
        build(name, {"final_map": "stage2", "feats": ["stage1", "stage3"]})
