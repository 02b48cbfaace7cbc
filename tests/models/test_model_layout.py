"""The layout that released checkpoints have: parameter counts, names and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdistiller.models import build_model

PARAMETERS_AT_100_CLASSES = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "ResNet50": 23_705_252,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "MobileNetV2": 812_836,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
}

# model -> a sample of its entries, the first and the last one included
ENTRIES = {
    "resnet8": {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.weight": (16,),
        "bn1.num_batches_tracked": (),
        "layer1.0.conv1.weight": (16, 16, 3, 3),
        "layer1.0.bn1.running_mean": (16,),
        "layer1.0.conv2.weight": (16, 16, 3, 3),
        "layer1.0.bn2.running_var": (16,),
        "layer2.0.conv1.weight": (32, 16, 3, 3),
        "layer2.0.downsample.0.weight": (32, 16, 1, 1),
        "layer2.0.downsample.1.weight": (32,),
        "layer3.0.downsample.1.bias": (64,),
        "fc.weight": (100, 64),
        "fc.bias": (100,),
    },
    "resnet32x4": {
        "conv1.weight": (32, 3, 3, 3),
        "layer1.0.conv1.weight": (64, 32, 3, 3),
        "layer1.0.downsample.0.weight": (64, 32, 1, 1),
        "layer1.4.bn2.weight": (64,),
        "layer3.4.conv2.weight": (256, 256, 3, 3),
        "fc.bias": (100,),
    },
    "ResNet18": {
        "conv1.weight": (64, 3, 3, 3),
        "bn1.bias": (64,),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.conv1.weight": (128, 64, 3, 3),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "layer2.0.shortcut.1.running_var": (128,),
        "layer4.1.bn2.weight": (512,),
        "linear.weight": (100, 512),
        "linear.bias": (100,),
    },
    "ResNet50": {
        "conv1.weight": (64, 3, 3, 3),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
        "layer1.2.bn3.weight": (256,),
        "layer3.5.conv1.weight": (256, 1024, 1, 1),
        "layer4.0.shortcut.1.bias": (2048,),
        "linear.weight": (100, 2048),
        "linear.bias": (100,),
    },
    "wrn_16_2": {
        "conv1.weight": (16, 3, 3, 3),
        "block1.layer.0.bn1.weight": (16,),
        "block1.layer.0.conv1.weight": (32, 16, 3, 3),
        "block1.layer.0.bn2.weight": (32,),
        "block1.layer.0.conv2.weight": (32, 32, 3, 3),
        "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "block3.layer.1.conv2.weight": (128, 128, 3, 3),
        "bn1.running_mean": (128,),
        "fc.weight": (100, 128),
        "fc.bias": (100,),
    },
    "vgg8": {
        "block0.0.weight": (64, 3, 3, 3),
        "block0.0.bias": (64,),
        "block0.1.running_mean": (64,),
        "block4.0.weight": (512, 512, 3, 3),
        "block4.1.bias": (512,),
        "classifier.weight": (100, 512),
        "classifier.bias": (100,),
    },
    "vgg13": {
        "block0.0.weight": (64, 3, 3, 3),
        "block0.3.weight": (64, 64, 3, 3),
        "block0.4.weight": (64,),
        "block1.0.weight": (128, 64, 3, 3),
        "block4.4.num_batches_tracked": (),
        "classifier.bias": (100,),
    },
    "vgg19": {
        "block0.0.weight": (64, 3, 3, 3),
        "block2.9.weight": (256, 256, 3, 3),
        "block4.10.weight": (512,),
        "classifier.bias": (100,),
    },
    "MobileNetV2": {
        "conv1.0.weight": (16, 3, 3, 3),
        "conv1.1.bias": (16,),
        "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
        "blocks.0.0.conv.1.weight": (16,),
        "blocks.0.0.conv.3.weight": (16, 1, 3, 3),
        "blocks.0.0.conv.6.weight": (8, 16, 1, 1),
        "blocks.0.0.conv.7.running_var": (8,),
        "blocks.1.0.conv.0.weight": (48, 8, 1, 1),
        "blocks.1.1.conv.4.weight": (72,),
        "blocks.6.0.conv.6.weight": (160, 480, 1, 1),
        "conv2.0.weight": (1280, 160, 1, 1),
        "conv2.1.weight": (1280,),
        "classifier.0.weight": (100, 1280),
        "classifier.0.bias": (100,),
    },
    "ShuffleV1": {
        "conv1.weight": (24, 3, 1, 1),
        "bn1.weight": (24,),
        "layer1.0.conv1.weight": (54, 24, 1, 1),
        "layer1.0.conv2.weight": (54, 1, 3, 3),
        "layer1.0.conv3.weight": (216, 18, 1, 1),
        "layer1.0.bn3.weight": (216,),
        "layer1.1.conv1.weight": (60, 80, 1, 1),
        "layer1.3.conv3.weight": (240, 20, 1, 1),
        "layer2.0.conv3.weight": (240, 20, 1, 1),
        "layer2.7.bn3.bias": (480,),
        "layer3.3.conv3.weight": (960, 80, 1, 1),
        "linear.weight": (100, 960),
        "linear.bias": (100,),
    },
    "ShuffleV2": {
        "conv1.weight": (24, 3, 1, 1),
        "bn1.weight": (24,),
        "layer1.0.conv1.weight": (24, 1, 3, 3),
        "layer1.0.conv2.weight": (58, 24, 1, 1),
        "layer1.0.conv3.weight": (58, 24, 1, 1),
        "layer1.0.conv4.weight": (58, 1, 3, 3),
        "layer1.0.conv5.weight": (58, 58, 1, 1),
        "layer1.0.bn5.weight": (58,),
        "layer1.3.bn3.weight": (58,),
        "layer2.7.conv2.weight": (116, 1, 3, 3),
        "layer3.3.conv3.weight": (232, 232, 1, 1),
        "conv2.weight": (1024, 464, 1, 1),
        "bn2.running_mean": (1024,),
        "linear.weight": (100, 1024),
        "linear.bias": (100,),
    },
}

NUM_ENTRIES = {
    "resnet8": 56,  # 9 convolutions, 9 BatchNorms of 5 entries each, weight and bias of the classifier
    "resnet32x4": 206,
    "ResNet18": 122,
    "ResNet50": 320,
    "wrn_16_2": 83,
    "vgg8": 37,
    "vgg13": 72,
    "vgg19": 114,
    "MobileNetV2": 320,
    "ShuffleV1": 296,
    "ShuffleV2": 338,
}

ABSENT = {
    "resnet8": ("layer1.0.downsample.0.weight", "conv1.bias"),
    "ResNet18": ("layer1.0.shortcut.0.weight", "conv1.bias"),
    "wrn_16_2": ("block1.layer.1.convShortcut.weight", "conv1.bias"),
    "vgg8": ("block0.3.weight",),
    "MobileNetV2": ("classifier.weight", "conv1.0.bias"),
    "ShuffleV1": ("conv1.bias",),
    "ShuffleV2": ("conv1.bias",),
}


@pytest.mark.parametrize("name", list(PARAMETERS_AT_100_CLASSES))
def test_parameter_count(name):
    model = build_model(name, num_classes=100)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS_AT_100_CLASSES[name]


@pytest.mark.parametrize("name", list(ENTRIES))
def test_entries(name):
    state = {key: tuple(value.shape) for key, value in build_model(name, num_classes=100).state_dict().items()}
    sample = ENTRIES[name]
    assert {key: state.get(key) for key in sample} == sample
    assert [*state][:: len(state) - 1] == [*sample][:: len(sample) - 1]
    assert len(state) == NUM_ENTRIES[name]
    assert [key for key in ABSENT.get(name, ()) if key in state] == []


@pytest.mark.parametrize("name", ["resnet20", "ResNet18", "wrn_16_2", "vgg8", "MobileNetV2"])
def test_convolutions_start_at_he_fan_out(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=10)
    for convolution in model.modules():
        if isinstance(convolution, nn.Conv2d):
            weight = convolution.weight
            spread = (2 / (weight.shape[0] * weight.shape[2] * weight.shape[3])) ** 0.5
            assert abs(weight.mean().item()) < 5 * spread / weight.numel() ** 0.5
            assert weight.std().item() == pytest.approx(spread, rel=4 / weight.numel() ** 0.5)
            assert convolution.bias is None or not convolution.bias.any()


def test_linears_start_as_published():
    torch.manual_seed(0)
    assert not build_model("wrn_16_1", 10).get_classifier().bias.any()
    for name in ("vgg8", "MobileNetV2"):
        classifier = build_model(name, 100).get_classifier()
        assert not classifier.bias.any()
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
