"""Forward passes computed again from the state dict alone, one family each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


class Net:
    """Layers looked up in a state dict by name, in evaluation mode."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, stride=1, groups=1):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2, groups=groups)

    def bn(self, name, x):
        mean, var, weight, bias = (
            self.state[f"{name}.{entry}"][:, None, None] for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv_bn(self, number, x, stride=1, groups=1, at=""):
        return self.bn(f"{at}bn{number}", self.conv(f"{at}conv{number}", x, stride, groups))

    def linear(self, name, x):
        return x.mean((2, 3)) @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def shuffled(x, groups):
    per_group = x.shape[1] // groups
    return x[:, [group * per_group + index for index in range(per_group) for group in range(groups)]]


def resnet8(net, image):
    x = net.conv_bn(1, image).relu()
    for layer, stride in (1, 1), (2, 2), (3, 2):
        at = f"layer{layer}.0."
        identity = x
        if stride == 2:
            identity = net.bn(f"{at}downsample.1", net.conv(f"{at}downsample.0", x, 2))
        x = net.conv_bn(1, x, stride, at=at).relu()
        x = (net.conv_bn(2, x, at=at) + identity).relu()
    return net.linear("fc", x), x


def ResNet50(net, image):
    x = net.conv_bn(1, image).relu()
    for layer, num_blocks in (1, 3), (2, 4), (3, 6), (4, 3):
        for block in range(num_blocks):
            at = f"layer{layer}.{block}."
            stride = 2 if block == 0 and layer > 1 else 1
            identity = x
            if block == 0:
                identity = net.bn(f"{at}shortcut.1", net.conv(f"{at}shortcut.0", x, stride))
            x = net.conv_bn(1, x, at=at).relu()
            x = net.conv_bn(2, x, stride, at=at).relu()
            x = (net.conv_bn(3, x, at=at) + identity).relu()
    return net.linear("linear", x), x


def wide_resnet(net, image):
    x = net.conv("conv1", image)
    for block, unit in (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1):
        at = f"block{block}.layer.{unit}."
        stride = 2 if unit == 0 and block > 1 else 1
        activated = net.bn(f"{at}bn1", x).relu()
        widens = f"{at}convShortcut.weight" in net.state
        identity = net.conv(f"{at}convShortcut", activated, stride) if widens else x
        out = net.bn(f"{at}bn2", net.conv(f"{at}conv1", activated, stride)).relu()
        x = net.conv(f"{at}conv2", out) + identity
    x = net.bn("bn1", x).relu()
    return net.linear("fc", x), x


def vgg8(net, image):
    x = image
    for block in range(5):
        if block in (1, 2, 3):
            x = F.max_pool2d(x, 2)
        x = net.bn(f"block{block}.1", net.conv(f"block{block}.0", x)).relu()
    return net.linear("classifier", x), x


def MobileNetV2(net, image):
    x = net.bn("conv1.1", net.conv("conv1.0", image, 2)).relu()
    for block, (num_units, first_stride) in enumerate([(1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]):
        for unit in range(num_units):
            at = f"blocks.{block}.{unit}.conv."
            out = net.bn(f"{at}1", net.conv(f"{at}0", x)).relu()
            out = net.conv(f"{at}3", out, first_stride if unit == 0 else 1, groups=out.shape[1])
            out = net.bn(f"{at}7", net.conv(f"{at}6", net.bn(f"{at}4", out).relu()))
            x = out + x if unit > 0 else out
    return net.linear("classifier.0", net.bn("conv2.1", net.conv("conv2.0", x)).relu()), x


def ShuffleV1(net, image):
    x = net.conv_bn(1, image).relu()
    for layer, num_units in (1, 4), (2, 8), (3, 4):
        for unit in range(num_units):
            at = f"layer{layer}.{unit}."
            groups = 1 if layer == 1 and unit == 0 else 3
            out = shuffled(net.conv_bn(1, x, groups=groups, at=at).relu(), groups)
            out = net.conv_bn(2, out, 2 if unit == 0 else 1, groups=out.shape[1], at=at).relu()
            out = net.conv_bn(3, out, groups=3, at=at)
            x = torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1).relu() if unit == 0 else (out + x).relu()
    return net.linear("linear", x), x


def ShuffleV2(net, image):
    x = net.conv_bn(1, image).relu()
    for layer, num_blocks in (1, 3), (2, 7), (3, 3):
        at = f"layer{layer}.0."
        left = net.conv_bn(1, x, 2, groups=x.shape[1], at=at)
        left = net.conv_bn(2, left, at=at).relu()
        right = net.conv_bn(3, x, at=at).relu()
        right = net.conv_bn(4, right, 2, groups=right.shape[1], at=at)
        x = shuffled(torch.cat([left, net.conv_bn(5, right, at=at).relu()], 1), 2)
        for block in range(1, num_blocks + 1):
            at = f"layer{layer}.{block}."
            half = x.shape[1] // 2
            out = net.conv_bn(1, x[:, half:], at=at).relu()
            out = net.conv_bn(2, out, groups=half, at=at)
            x = shuffled(torch.cat([x[:, :half], net.conv_bn(3, out, at=at).relu()], 1), 2)
    return net.linear("linear", net.conv_bn(2, x).relu()), x


FORWARDS = {
    "resnet8": resnet8,
    "ResNet50": ResNet50,
    "wrn_16_1": wide_resnet,
    "wrn_16_2": wide_resnet,
    "vgg8": vgg8,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}


@pytest.mark.parametrize("name", list(FORWARDS))
def test_forward_computed_again(name, vivid_model):
    model = vivid_model(name).double().eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, feats = model(image)
        expected_logits, expected_map = FORWARDS[name](Net(model.state_dict()), image)
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(feats["final_map"], expected_map)
