"""A user's own model gets the methods and outputs of `ClassifierModel` when it is built, as far as possible."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mdistiller.distillers import DeployedStudent, distiller_dict
from mdistiller.distillers._plugins import build_distiller
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.speed.fold_batchnorm import fold_batchnorm
from mdistiller.errors import UserError
from mdistiller.models import ClassifierModel, build_model, register_model
from mdistiller.models.adapters.user_models import adapt
from mdistiller.models.cifar import cifar_model_dict
from tests.conftest import REPO

OWN_MODELS = str(REPO / "tests/models/own_models.py")

pytestmark = pytest.mark.usefixtures("registries_as_before")


@pytest.fixture
def own(registries_as_before):
    """The classes of tests/models/own_models.py, registered for one test."""
    load_cfg(None, ["PLUGINS", OWN_MODELS])
    return SimpleNamespace(Contract=cifar_model_dict["contract"][0], LogitsAlone=cifar_model_dict["logits_alone"][0])


def image(size=16):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


def same_state(model, other):
    states = model.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states)))


def test_a_model_of_the_zoo_is_left_as_it_is():
    constructor = cifar_model_dict["resnet8"][0]
    torch.manual_seed(3)
    expected = constructor(num_classes=3)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    model = build_model("resnet8", 3)
    assert type(model) is type(expected)
    assert vars(model).keys() == vars(expected).keys()
    assert same_state(model, expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("name", ["contract", "logits_alone"])
def test_weights_names_modes_and_random_state_stay(own, name):
    constructor = cifar_model_dict[name][0]
    torch.manual_seed(3)
    expected = constructor(num_classes=3)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    model = build_model(name, 3, input_size=16)
    assert isinstance(model, constructor)
    assert type(model).__qualname__ == constructor.__qualname__
    assert same_state(model, expected)  # running statistics included
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), after)


def test_a_forward_that_draws_in_evaluation_mode_moves_no_random_state():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(torch.dropout(x.flatten(1), 0.5, train=True))

    torch.manual_seed(3)
    Noisy(48, 5)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    adapt(Noisy(48, 5), "noisy", 5, 4)
    assert torch.equal(torch.get_rng_state(), after)


def test_what_mdistillers_forward_gives(own):
    model = build_model("contract", 3, input_size=16).eval()
    logits, feats = model(image())
    expected, given = own.Contract.forward(model, image())
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert set(feats) == {*given, "final_map"}
    assert torch.equal(feats["final_map"], feats["feats"][-1])
    assert model.get_stage_channels() == [8, 16, 32]
    # its weights are 0, as are those of the layer after it, which has the same shape
    assert model.get_classifier() is model.linear
    with pytest.raises(NotImplementedError):
        model.get_bn_before_relu()


def test_a_final_map_of_its_own_stays():
    class Mapped(nn.Conv2d):
        def forward(self, x):
            feat = super().forward(x)
            pooled = feat.relu().mean((2, 3))
            return pooled, {
                "feats": [x, feat],
                "preact_feats": [x, feat],
                "final_map": feat.relu(),
                "pooled_feat": pooled,
            }

    model = adapt(Mapped(3, 5, 3), "mapped", 5, 8)
    _, feats = model(image(8))
    assert type(feats) is dict
    assert torch.equal(feats["final_map"], feats["feats"][-1].relu())


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_classifier_of_its_own_is_believed_when_it_computes_the_logits(own, scale):
    class Own(own.Contract):
        def get_classifier(self):
            return self.linear

        def get_bn_before_relu(self):
            return [self.stage1[1], self.stage2[1]]

        def forward(self, x):
            logits, feats = super().forward(x)
            return scale * logits, feats

    model = adapt(Own(3), "own", 3, 16)
    assert model.get_bn_before_relu() == [model.stage1[1], model.stage2[1]]
    if scale == 1.0:
        assert model.get_classifier() is model.linear
    else:
        with pytest.raises(UserError, match="own has no nn.Linear that turns its 'pooled_feat' into its logits"):
            model.get_classifier()


def test_another_classifier_of_its_own_is_not_replaced(own):
    class Wrong(own.Contract):
        def get_classifier(self):
            return self.auxiliary

    with pytest.raises(UserError, match="wrong has no nn.Linear that turns its 'pooled_feat' into its logits"):
        adapt(Wrong(3), "wrong", 3, 16).get_classifier()


def test_logits_alone(own):
    model = build_model("logits_alone", 3, input_size=16).eval()
    logits, feats = model(image())
    torch.testing.assert_close(logits, own.LogitsAlone.forward(model, image()), rtol=0, atol=0)
    assert not feats
    for key in ("feats", "preact_feats", "final_map", "pooled_feat"):
        with pytest.raises(
            UserError, match=f"logits_alone gives no '{key}', .*; have its forward return .*only logits"
        ):
            feats[key]
    with pytest.raises(KeyError, match="attention"):
        feats["attention"]
    with pytest.raises(UserError, match="logits_alone gives no 'pooled_feat'"):
        model.get_classifier()
    torch.testing.assert_close(DeployedStudent(model).forward_eval(image()), {"deployed": logits})


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


LOGITS, FEAT, POOLED = torch.zeros(2, 3), torch.zeros(2, 4, 5, 5), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"logits": LOGITS, "aux": LOGITS}, "mine returns a dict with the keys logits, aux; expected logits"),
        ((LOGITS, LOGITS), r"mine returns a tuple of a tensor \[2, 3\], a tensor \[2, 3\]; expected logits"),
        ((LOGITS, {}, 3), r"mine returns a tuple of a tensor \[2, 3\], a dict with the keys , a int; expected logits"),
        (([FEAT], LOGITS), r"mine returns a tuple of a list of a tensor \[2, 4, 5, 5\], a tensor \[2, 3\]; expected"),
        (None, "mine returns a NoneType; expected logits"),
        (FEAT, r"mine gives logits \[2, 4, 5, 5\] for two images; expected \[2, 3\]: give its classifier 3"),
        (POOLED, r"mine gives logits \[2, 4\] for two images; expected \[2, 3\]"),
        ((LOGITS, {"feats": FEAT}), r"mine gives 'feats' as a tensor \[2, 4, 5, 5\] .*; expected the list of its"),
        ((LOGITS, {"feats": [FEAT, POOLED]}), r"mine gives 'feats' as a list of .*, a tensor \[2, 4\] for two images"),
        ((LOGITS, {"preact_feats": None}), "mine gives 'preact_feats' as a NoneType .*: correct it, or leave it out"),
        ((LOGITS, {"pooled_feat": FEAT}), r"mine gives 'pooled_feat' as a tensor \[2, 4, 5, 5\] .*; expected the feat"),
        ((LOGITS, {"final_map": [FEAT]}), r"mine gives 'final_map' as a list of a tensor \[2, 4, 5, 5\] for two"),
    ],
)  # fmt: skip
def test_what_no_distiller_could_read_is_one_line(output, message):
    with pytest.raises(UserError, match=message) as caught:
        adapt(Returns(lambda x: output), "mine", 3, 8)
    assert "\n" not in str(caught.value)


def fails(x):
    raise IndexError("no such\nthing")


def test_what_ones_own_code_raises_is_one_line():
    line = fails.__code__.co_firstlineno + 1
    place = rf"\(IndexError: no such, .*test_adapt.py line {line}\); correct it, or"
    with pytest.raises(UserError, match=f"mine cannot take two images of 8 px {place} set another DATASET.INPUT_SIZE"):
        adapt(Returns(fails), "mine", 3, 8)
    register_model("broken")(lambda num_classes: fails(num_classes))
    with pytest.raises(UserError, match=f"the constructor of broken fails with num_classes=3 {place} name another mod"):
        build_model("broken", 3)
    register_model("narrow")(lambda: None)
    with pytest.raises(UserError, match="the constructor of narrow fails with num_classes=3 .TypeError: .*num_classes"):
        build_model("narrow", 3)
    register_model("number")(lambda num_classes: num_classes)
    with pytest.raises(UserError, match=r"the constructor of number returns a int; expected a torch.nn.Module"):
        build_model("number", 3)


def test_memory_that_runs_out_is_not_the_models_fault():
    def greedy(x):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        adapt(Returns(greedy), "mine", 3, 8)


def test_other_outputs_in_training_mode_are_one_line(own):
    class Auxiliary(own.LogitsAlone):
        def forward(self, x):
            logits = super().forward(x)
            return (logits, logits) if self.training else logits

    model = adapt(Auxiliary(3), "mine", 3, 16)
    assert model.eval()(image())[0].shape == (2, 3)
    with pytest.raises(UserError, match="mine returns a tuple of a tensor"):
        model.train()(image())


def test_the_inference_form_folds_it(own):
    model = build_model("contract", 3, input_size=16).eval().requires_grad_(False)
    for norm in (model.stage1[1], model.stage2[1]):
        norm.running_mean.uniform_()
    folded, count = fold_batchnorm(model, 16)
    assert count == 2
    assert folded.get_classifier() is folded.linear
    (logits, feats), (expected, expected_feats) = folded(image()), model(image())
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(feats["final_map"], expected_feats["final_map"])
    copied = copy.deepcopy(model)
    assert copied.get_stage_channels() == [8, 16, 32]
    assert not isinstance(copied, ClassifierModel)


@pytest.mark.parametrize("method", ["SIMKD", "CAT_KD", "SFAKD"])
def test_a_pooled_feature_that_is_no_average_of_the_last_map(own, method):
    """Methods that use the map instead of the feature refuse the model; SFAKD uses the feature."""

    class Maximum(own.Contract):
        def forward(self, x):
            _, feats = super().forward(x)
            pooled = feats["feats"][-1].amax((2, 3))
            return self.linear(pooled), {**feats, "pooled_feat": pooled}

    teacher = adapt(Maximum(3), "maximum", 3, 16)
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "DATASET.INPUT_SIZE", "16"])
    if method == "SFAKD":
        head = build_distiller(method, build_model("resnet8", 3), teacher, cfg, 8).head
        assert same_state(head.classifier, teacher.linear)
    else:
        with pytest.raises(UserError, match=f"{method} needs .*'pooled_feat'.* is not (that|the) average"):
            build_distiller(method, build_model("resnet8", 3), teacher, cfg, 8)


def test_a_student_without_a_classifier_is_refused_before_the_first_step(own):
    class Scaled(own.Contract):
        def forward(self, x):
            logits, feats = super().forward(x)
            return 2 * logits, feats

    student = adapt(Scaled(3), "scaled", 3, 16)
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "16"])
    teacher = build_model("resnet8", 3)
    with pytest.raises(UserError, match="scaled has no nn.Linear"):
        build_distiller("SFAKD", student, teacher, cfg, 8)
    assert isinstance(build_distiller("KD", student, teacher, cfg, 8), distiller_dict["KD"])
