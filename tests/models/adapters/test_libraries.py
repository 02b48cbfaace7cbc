"""Models of torchvision and timm by name keep the contract of the zoo."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.transforms.functional import normalize

from mdistiller.errors import UserError
from mdistiller.models import build_model, check_model, library_input, library_weights

SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}
# name, arguments, channels of the stage maps, whether the pooled feature is the average of the final map
TORCHVISION = [
    ("resnet18", {}, [64, 64, 128, 256, 512], True),
    ("mobilenet_v3_small", {}, [16, 16, 24, 48, 576], False),
]
TIMM = [
    ("resnet10t", {}, [64, 64, 128, 256, 512], True),
    ("efficientnet_lite0", {}, [16, 24, 40, 112, 320], True),
    ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 8}, [192] * 5, False),
    ("convnext_atto", {}, [40, 80, 160, 320], False),
    ("swin_tiny_patch4_window7_224", SMALL_SWIN, [24, 48, 96, 192], True),
]
CASES = [("torchvision", *case) for case in TORCHVISION] + [("timm", *case) for case in TIMM]


@pytest.fixture(autouse=True)
def timm_if_needed(request):
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and "timm" in callspec.id:
        pytest.importorskip("timm")


@pytest.mark.parametrize(("library", "name", "arguments", "channels", "averages"), CASES)
def test_contract(library, name, arguments, channels, averages):
    torch.manual_seed(0)
    model = build_model(f"{library}/{name}", 5, "imagefolder", 32, arguments).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits, feats = model(image)
        own = _plain_logits(model, library, image)
    torch.testing.assert_close(logits, own)
    torch.testing.assert_close(model.get_classifier()(feats["pooled_feat"]), logits)
    assert isinstance(model.get_classifier(), nn.Linear)
    assert [feat.shape[1] for feat in feats["feats"]] == model.get_stage_channels() == channels
    assert all(feat.dim() == 4 and feat.shape[2] == feat.shape[3] for feat in feats["feats"])
    assert feats["final_map"].dim() == 4
    assert model.findings.averages_final_map == averages
    if model.has_tail:
        torch.testing.assert_close(model.forward_tail(feats["final_map"]), (logits, feats["pooled_feat"]))


def _plain_logits(model, library, image):
    """The logits of the library's own class with the same weights."""
    kind = next(kind for kind in type(model).__mro__[1:] if kind.__module__.startswith(library))
    return kind.forward(model, image)


@pytest.mark.parametrize(
    ("name", "arguments", "channels"),
    [
        (
            "torchvision.models.swin_transformer:SwinTransformer",
            {"patch_size": [4, 4], "window_size": [4, 4], **SMALL_SWIN},
            [24, 24, 48, 96, 192],
        ),
        (
            "torchvision.models:VisionTransformer",
            {"image_size": 32, "patch_size": 4, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64},
            [32] * 5,
        ),
    ],
)
def test_token_models_of_torchvision(name, arguments, channels):
    model = build_model(name, 5, "imagefolder", 32, arguments).eval()
    logits, feats = model(torch.randn(2, 3, 32, 32))
    assert [feat.shape[1] for feat in feats["feats"]] == channels
    torch.testing.assert_close(model.get_classifier()(feats["pooled_feat"]), logits)
    assert model.findings.averages_final_map == (len(set(channels)) > 1)


def test_deit_with_two_classifiers_gives_logits_alone():
    pytest.importorskip("timm")
    model = build_model("timm/deit_tiny_distilled_patch16_224", 5, "imagefolder", 32, {"depth": 1}).eval()
    with pytest.raises(UserError, match="gives no 'pooled_feat', .*get_classifier.. gives a tuple.*only logits"):
        model(torch.randn(2, 3, 32, 32))[1]["pooled_feat"]


def test_the_input_of_the_weights():
    pytest.importorskip("timm")
    assert library_input("torchvision/resnet50").size == 224
    lite = library_input("timm/efficientnet_lite0")
    assert lite.interpolation == "bicubic"
    assert library_input("timm/vit_small_patch16_384").size == 384
    assert library_input("timm/vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert library_input("resnet8") is None


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_the_input_of_inceptions_weights(name):
    """With its weights, torchvision converts the usual normalization within the model; ours gives the same pixels."""
    image = torch.rand(2, 3, 299, 299)
    usual = models.get_model_weights(name).DEFAULT.transforms()
    theirs = models.get_model(name, weights=None, init_weights=False, transform_input=True)
    converted = theirs._transform_input(normalize(image, usual.mean, usual.std))
    ours = library_input(f"torchvision/{name}")
    torch.testing.assert_close(normalize(image, ours.mean, ours.std), converted)
    assert not build_model(f"torchvision/{name}", 5, "imagefolder", 96).transform_input


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("torchvision/resnet19", {}, "torchvision has no classification model 'resnet19'; did you mean resnet1"),
        ("torchvision/fcn_resnet50", {}, "torchvision has no classification model"),
        ("torchvision/resnet18", {"depth": 3}, "torchvision/resnet18 refuses .*'depth'"),
        ("torchvision/vit_b_16", {"image_size": 30}, "vit_b_16 (refuses|cannot)"),
        ("timm/resnet19", {}, "timm has no model 'resnet19'; did you mean"),
        ("timm/resnet18.a1_in2k", {}, "timm has no weights 'resnet18.a1_in2k'; did you mean .*resnet18.a1_in1k"),
        ("timm/resnet10t", {"depth": 3}, "timm/resnet10t refuses images of 32 px .*'depth'"),
        ("timm/resnet10t", {"pretrained": True}, "pretrained is no argument .*TEACHER_WEIGHTS or STUDENT_WEIGHTS to"),
        ("timm/resnet10t", {"checkpoint_path": "x"}, "checkpoint_path is no argument"),
    ],
)
def test_one_line(name, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build_model(name, 5, "imagefolder", 32, arguments)
    assert "\n" not in str(caught.value)


def test_features_of_timm_are_its_own():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="the features of timm/resnet10t come from timm itself"):
        build_model("timm/resnet10t", 5, "imagefolder", 32, None, {"final_map": "layer4"})


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="a model of timm needs timm; run: pip install timm"):
        check_model("timm/resnet10t")


@pytest.mark.parametrize(
    ("name", "download"),
    [("torchvision/resnet18", "torch.hub.download_url_to_file"), ("timm/resnet10t", "timm.create_model")],
)
def test_weights_that_cannot_be_downloaded(name, download, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("Network is\nunreachable")

    monkeypatch.setattr(download, refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="weights of resnet1.* cannot be downloaded .Network is unreachable") as caught:
        library_weights(name, 32, {})
    assert "\n" not in str(caught.value)


def test_images_that_are_too_small_for_torchvision_are_named():
    with pytest.raises(UserError, match="torchvision/squeezenet1_1 cannot take two images of 16 px"):
        build_model("torchvision/squeezenet1_1", 3, "imagefolder", 16)


def test_a_model_of_timm_that_pools_its_tokens_gives_logits():
    pytest.importorskip("timm")
    model = build_model("timm/pit_ti_224", 5, "imagefolder", 224).eval()
    assert model(torch.zeros(1, 3, 224, 224))[0].shape == (1, 5)
    with pytest.raises(UserError, match="its last tokens are not those of a map"):
        model.get_classifier()
