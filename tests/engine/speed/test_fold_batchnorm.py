"""A folded model has the outputs of the model, except for the rounding of its weights."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mdistiller.dataset import get_val_loader
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.networks.build import build_teacher
from mdistiller.engine.speed.fold_batchnorm import fold_batchnorm
from mdistiller.models import build_model

KINDS = [
    *("resnet8", "resnet8x4", "ResNet18", "ResNet50", "wrn_16_1", "wrn_40_2"),
    *("vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"),
]
DEEPEST = ["resnet110", "ResNet50", "wrn_40_2", "vgg19", "MobileNetV2", "ShuffleV1", "ShuffleV2"]  # with largest errors
# BatchNorms of a WRN that directly follow a convolution: the second one of each unit
FOLDED_OF_WRN = {"wrn_16_1": 6, "wrn_40_2": 18}


def with_random_norms(name):
    """A model whose BatchNorms change their inputs."""
    model = build_model(name, 20, "cifar100", 32).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def error(given, expected):
    return float((given.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_outputs_stay(name):
    model = with_random_norms(name)
    before = copy.deepcopy(model.state_dict())
    image = torch.randn(4, 3, 32, 32)
    logits, feats = model(image)
    folded, count = fold_batchnorm(model, 32)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert count == FOLDED_OF_WRN.get(name, norms)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == norms - count
    given, given_feats = folded(image)
    assert error(given, logits) < 1e-5
    for key in ("feats", "preact_feats"):
        for a, b in zip(given_feats[key], feats[key]):
            assert error(a, b) < 1e-5
    assert error(given_feats["pooled_feat"], feats["pooled_feat"]) < 1e-5
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])  # the model itself is unchanged


@pytest.mark.parametrize("name", DEEPEST)
@torch.no_grad()
def test_bfloat16_moves_the_vectors_by_less_than_a_hundredth(name):
    model = with_random_norms(name)
    image = torch.randn(4, 3, 32, 32)
    logits, feats = model(image)
    low, _ = fold_batchnorm(model, 32, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        given, given_feats = low(image)
    assert given.dtype == given_feats["pooled_feat"].dtype == torch.float32
    assert given_feats["final_map"].dtype == torch.bfloat16
    assert 0 < error(given, logits) < 0.01
    assert 0 < error(given_feats["pooled_feat"], feats["pooled_feat"]) < 0.01


class Twice(nn.Module):
    """Uses one convolution's result outside its BatchNorm too, and another convolution twice."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.third, self.third_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, image):
        x = self.first(image)
        x = self.first_norm(x).relu() + x
        x = self.second_norm(self.second(self.second(x)))
        return x.mean((2, 3)), {"feats": [self.third_norm(self.third(x))]}


@torch.no_grad()
def test_what_is_used_twice_is_not_folded():
    model = Twice().eval()
    for norm in (model.first_norm, model.second_norm, model.third_norm):
        norm.running_mean.uniform_(1, 2)
    folded, count = fold_batchnorm(model, 8)
    assert count == 1
    assert isinstance(folded.third_norm, nn.Identity)
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(image)[0], model(image)[0])


class ByName(nn.Module):
    """Gives a BatchNorm its input by name."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image):
        return self.norm(input=self.conv(image)).mean((2, 3)), {}


@torch.no_grad()
def test_an_input_by_name_is_not_folded():
    model = ByName().eval()
    folded, count = fold_batchnorm(model, 8)
    assert count == 0
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(image)[0], model(image)[0])


class Unusual(nn.Module):
    """Has layers and outputs that the model zoo does not have."""

    def __init__(self):
        super().__init__()
        self.conv, self.group, self.layer = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.LayerNorm(8)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, image):
        x = self.batch(self.second(self.layer(self.group(self.conv(image)))))
        return x.mean((2, 3)), {"feats": [x, None], "count": 3}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_other_layers_and_outputs_pass(dtype):
    model = Unusual().eval()
    folded, count = fold_batchnorm(model, 8, dtype)
    assert count == 0
    image = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        given, expected = folded(image)[0], model(image)[0]
    torch.testing.assert_close(given, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_of_another_type_runs_in_it(dtype):
    logits, feats = build_model("resnet8x4", 10, "cifar100", 32).eval().to(dtype)(torch.randn(2, 3, 32, 32).to(dtype))
    assert logits.dtype == feats["pooled_feat"].dtype == dtype


def test_linear_layers_and_norms_keep_float32():
    low, _ = fold_batchnorm(with_random_norms("wrn_16_1"), 32, torch.bfloat16)
    dtypes = {}
    for module in low.modules():
        for parameter in module.parameters(recurse=False):
            dtypes.setdefault(type(module), set()).add(parameter.dtype)
            assert not parameter.requires_grad
    assert dtypes[nn.Linear] == dtypes[nn.BatchNorm2d] == {torch.float32}
    assert dtypes[nn.Conv2d] == {torch.bfloat16}


@torch.no_grad()
def test_the_demos_teacher_keeps_its_answers():
    root = Path(__file__).resolve().parents[3]
    cfg = load_cfg(str(root / "configs/demo/sfakd.yaml"), ["DATASET.ROOT", str(root / "data/fashion-mnist-part")])
    cfg.DISTILLER.TEACHER_WEIGHTS = str(root / "download_ckpts/demo/wrn_16_2.pth")
    loader = get_val_loader(cfg)
    teacher = build_teacher(cfg, loader.info).eval()
    low, _ = fold_batchnorm(teacher, 32, torch.bfloat16)
    batch = next(iter(loader))
    with torch.autocast("cpu", torch.bfloat16):
        given, feats = low(batch["image"])
    expected, expected_feats = teacher(batch["image"])
    assert error(given, expected) < 0.01
    assert error(feats["pooled_feat"], expected_feats["pooled_feat"]) < 0.01
    assert (given.argmax(1) == expected.argmax(1)).float().mean() >= 0.99
    correct = [(logits.argmax(1) == batch["target"]).float().mean() for logits in (given, expected)]
    assert correct[1] > 0.85
    assert abs(correct[0] - correct[1]) < 0.01
