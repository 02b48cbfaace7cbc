"""The ImageNet family: torchvision's weights and numbers, MDistiller's keys, and the contract of all models."""

from __future__ import annotations

import os
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import hub, nn

from mdistiller.errors import UserError
from mdistiller.models import imagenet_model_dict, load_weights
from mdistiller.models.imagenet import mobilenetv1, resnet
from tests.models.conftest import make_vivid

RESNETS = ["ResNet18", "ResNet34", "ResNet50", "ResNet101"]
SIDES = {"ResNet18": [16, 16, 8, 4, 2], "ResNet50": [16, 16, 8, 4, 2], "MobileNetV1": [32, 16, 8, 4, 2]}
CHANNELS = {
    "ResNet18": [64, 64, 128, 256, 512],
    "ResNet34": [64, 64, 128, 256, 512],
    "ResNet50": [64, 256, 512, 1024, 2048],
    "ResNet101": [64, 256, 512, 1024, 2048],
    "MobileNetV1": [32, 128, 256, 512, 1024],
}


@pytest.fixture(scope="module", params=list(SIDES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    torch.manual_seed(0)
    return make_vivid(imagenet_model_dict[name](num_classes=7)).eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def output(model, image):
    with torch.no_grad():
        return model(image)


def test_names_and_defaults():
    assert list(imagenet_model_dict) == [*RESNETS, "MobileNetV1"]
    with torch.device("meta"):
        for name, constructor in imagenet_model_dict.items():
            model = constructor()
            assert model.get_classifier().out_features == 1000
            assert model.get_stage_channels() == CHANNELS[name]
            assert [norm.num_features for norm in model.get_bn_before_relu()] == CHANNELS[name][1:]


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_have_torchvisions_keys(name):
    with torch.device("meta"):
        ours = imagenet_model_dict[name]().state_dict()
        theirs = getattr(torchvision.models, name.lower())().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
@pytest.mark.parametrize("training", [False, True])
def test_resnets_compute_what_torchvisions_do(name, training, image):
    torch.manual_seed(0)
    theirs = make_vivid(getattr(torchvision.models, name.lower())(num_classes=10)).train(training)
    ours = imagenet_model_dict[name](num_classes=10).train(training)
    load_weights(ours, theirs.state_dict(), "torchvision")
    logits, expected = ours(image)[0], theirs(image)
    torch.testing.assert_close(logits, expected)
    if training:
        for model, out in ((ours, logits), (theirs, expected)):
            out.square().mean().backward()
            assert all(p.grad is not None for p in model.parameters())
        torch.testing.assert_close(ours.conv1.weight.grad, theirs.conv1.weight.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours.bn1.running_var, theirs.bn1.running_var)


def test_the_same_seed_gives_torchvisions_weights():
    states = []
    for constructor in (imagenet_model_dict["ResNet18"], torchvision.models.resnet18):
        torch.manual_seed(3)
        states.append(constructor(num_classes=4).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_mobilenetv1_has_upstreams_keys():
    def norm(at):
        return [f"{at}.{entry}" for entry in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    expected = ["model.0.0.weight", *norm("model.0.1")]
    for unit in range(1, 14):
        expected += [f"model.{unit}.0.weight", *norm(f"model.{unit}.1")]
        expected += [f"model.{unit}.3.weight", *norm(f"model.{unit}.4")]
    model = imagenet_model_dict["MobileNetV1"]()
    assert list(model.state_dict()) == [*expected, "fc.weight", "fc.bias"]
    assert sum(p.numel() for p in model.parameters()) == 4_231_976


def test_mobilenetv1_computed_again(image):
    torch.manual_seed(0)
    model = make_vivid(imagenet_model_dict["MobileNetV1"](num_classes=7)).eval()
    s = model.state_dict()

    def layer(x, at, number, stride=1, groups=1):
        weight = s[f"{at}.{number}.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, var, gain, bias = (
            s[f"{at}.{number + 1}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / torch.sqrt(var + 1e-5) * gain + bias).relu()

    x = layer(image, "model.0", 0, stride=2)
    for unit, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), start=1):
        x = layer(x, f"model.{unit}", 0, stride, groups=x.shape[1])
        x = layer(x, f"model.{unit}", 3)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], F.linear(x.mean((2, 3)), s["fc.weight"], s["fc.bias"]))


def test_shapes(name, model, output):
    logits, feats = output
    assert logits.shape == (2, 7)
    assert set(feats) == {"feats", "preact_feats", "final_map", "pooled_feat"}
    shapes = [(2, channels, side, side) for channels, side in zip(CHANNELS[name], SIDES[name])]
    assert [tuple(f.shape) for f in feats["feats"]] == [tuple(f.shape) for f in feats["preact_feats"]] == shapes
    assert all(f.is_contiguous() for f in feats["feats"] + feats["preact_feats"])
    assert feats["pooled_feat"].shape == (2, CHANNELS[name][-1])


def test_preacts_final_map_and_halves(model, image, output):
    logits, feats = output
    for preact, feat in zip(feats["preact_feats"], feats["feats"]):
        assert torch.equal(F.relu(preact), feat)
        assert preact.min() < 0
    assert feats["final_map"] is feats["feats"][-1]
    classifier = model.get_classifier()
    assert torch.equal(F.linear(feats["pooled_feat"], classifier.weight, classifier.bias), logits)
    with torch.no_grad():
        again, pooled = model.forward_tail(model.forward_stages(image).final_map)
    assert torch.equal(again, logits)
    assert torch.equal(pooled, feats["pooled_feat"])


def test_a_training_step_reaches_everything_once(name, image):
    model = imagenet_model_dict[name](num_classes=7).train()
    logits, feats = model(image)
    grads = torch.autograd.grad(logits.square().sum(), feats["feats"], retain_graph=True)
    assert all(grad.abs().sum() > 0 for grad in grads)
    logits.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert {m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1}


def test_bn_before_relu_by_name(name, model):
    ends = {
        "ResNet18": ["layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2", "layer4.1.bn2"],
        "ResNet50": ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"],
        "MobileNetV1": ["model.3.4", "model.5.4", "model.11.4", "model.13.4"],
    }
    names = {module: key for key, module in model.named_modules()}
    assert [names[norm] for norm in model.get_bn_before_relu()] == ends[name]


@pytest.mark.parametrize("size", [(32, 32), (72, 40)])
def test_other_sizes_and_strides(model, size):
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        logits = model(image)[0]
        last = model.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))[0]
    model.to(memory_format=torch.contiguous_format)
    assert logits.shape == (1, 7)
    torch.testing.assert_close(last / logits.abs().max(), logits / logits.abs().max(), atol=1e-4, rtol=0)


@pytest.fixture
def hub_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "_hub_dir", None)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_pretrained_weights_are_torchvisions(hub_folder, image, monkeypatch):
    torch.manual_seed(0)
    theirs = make_vivid(torchvision.models.resnet18()).eval()
    calls = []

    def fetch(url, target, hash_prefix):
        calls.append((os.path.basename(target), hash_prefix))
        torch.save(theirs.state_dict(), target)

    monkeypatch.setattr(hub, "download_url_to_file", fetch)
    for _ in range(2):
        ours = imagenet_model_dict["ResNet18"](pretrained=True).eval()
    assert calls == [("resnet18-f37072fd.pth", "f37072fd")]
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[0], theirs(image))
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth do not fit ResNet; wrong shape: fc.weight \[1000, "):
        imagenet_model_dict["ResNet18"](pretrained=True, num_classes=10)
    (hub_folder / "resnet18-f37072fd.pth").write_bytes(b"half")
    with pytest.raises(UserError, match="resnet18-f37072fd.pth is damaged .*remove it"):
        imagenet_model_dict["ResNet18"](pretrained=True)


def test_pretrained_without_a_network(hub_folder, monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(hub, "download_url_to_file", fail)
    for name, file in (("ResNet34", "resnet34-b627a593.pth"), ("ResNet50", "resnet50-0676ba61.pth")):
        with pytest.raises(UserError) as raised:
            imagenet_model_dict[name](pretrained=True)
        message = str(raised.value)
        assert "\n" not in message
        assert f"{name} are not at {hub_folder / file} and could not be downloaded (<urlopen error" in message
        assert f"get https://download.pytorch.org/models/{file} and put it there" in message
        assert "DISTILLER.TEACHER_WEIGHTS" in message


def test_mobilenetv1_has_no_released_weights():
    with pytest.raises(UserError, match="no ImageNet weights of MobileNetV1 are released; train it"):
        imagenet_model_dict["MobileNetV1"](pretrained=True)
    assert imagenet_model_dict["MobileNetV1"] is mobilenetv1.MobileNetV1
    assert imagenet_model_dict["ResNet50"] is resnet.ResNet50
