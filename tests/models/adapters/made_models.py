"""A user's file of models that return logits alone, in the ways that people write them."""

import random
import threading
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self, num_classes=10, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.stage1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.stage3 = Block(2 * width, 4 * width, 2)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(4 * width, num_classes)

    def forward_map(self, x):
        return self.stage3(self.stage2(self.stage1(F.relu(self.stem(x)))))

    def forward(self, x):
        return self.head(self.drop(self.forward_map(x).mean((2, 3))))


class Padded(Net):
    """Padding for "same" sizes, as in networks that come from TensorFlow."""

    def forward(self, x):
        x = F.relu(self.stem(F.pad(x, (0, 2, 0, 2))[:, :, :-2, :-2]))
        x = self.stage2(F.pad(self.stage1(x), (0, 1, 0, 1)))
        return self.head(self.drop(F.adaptive_avg_pool2d(self.stage3(x), 1).view(x.size(0), -1)))


class Deciding(Net):
    """A decision that depends on the images: there is no graph."""

    def forward(self, x):
        features = self.forward_map(x)
        if features.mean() > 1e9:
            features = features / 2
        return self.head(self.drop(F.adaptive_avg_pool2d(features, 1).flatten(1)))


class Skipping(Net):
    """Python's random numbers decide: a graph would repeat the decision that was drawn when it was traced."""

    def forward(self, x):
        x = self.stage1[0](F.relu(self.stem(x)))
        if not (self.training and random.random() < 0.5):
            x = self.stage1[1](x)
        return self.head(self.stage3(self.stage2(x)).mean((2, 3)))


class SkippingByNumPy(Skipping):
    """NumPy's random numbers decide."""

    def forward(self, x):
        x = self.stage1[0](F.relu(self.stem(x)))
        if not (self.training and np.random.rand() < 0.5):
            x = self.stage1[1](x)
        return self.head(self.stage3(self.stage2(x)).mean((2, 3)))


class Counting(Net):
    """A counter of its own changes what is computed; a graph would keep the number of the time of tracing."""

    steps = 0

    def forward(self, x):
        self.steps += 1
        return self.head(self.forward_map(x).mean((2, 3)) * min(1.0, self.steps / 100))


class Output:
    def __init__(self, logits):
        self.logits = logits


class Wrapped(Net):
    """An object with `logits`, as Hugging Face's models return."""

    def forward(self, pixel_values):
        return Output(super().forward(pixel_values))


class Remembering(Net):
    """It keeps a tensor of its last batch."""

    def forward(self, x):
        self.last = self.forward_map(x)
        return self.head(self.last.mean((2, 3)))


class Hidden(Net):
    """Its logits are not those of a linear layer."""

    def forward(self, x):
        return torch.log_softmax(super().forward(x), 1)


class Viewing(Net):
    """`view` needs a memory layout that channels_last does not have."""

    def __init__(self, num_classes=10, width=8):
        super().__init__(num_classes, width)
        self.head = nn.Linear(4 * width * 8 * 8, num_classes)

    def forward(self, x):
        return self.head(self.forward_map(x).view(len(x), -1))


class Tokens(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self, num_classes=10, width=32, depth=5):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        layer = [nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True) for _ in range(depth)]
        self.layers = nn.Sequential(*layer)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.fc(self.norm(self.layers(x))[:, 0])


def make_model(num_classes, width=8):
    return Net(num_classes, width)


def ten_classes():
    return Net(10)


def ten_hidden():
    return Hidden(10)


def in_float16(num_classes):
    return Net(num_classes).half()


def compiled(num_classes):
    return torch.compile(Net(num_classes))


def scripted(num_classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # new versions of PyTorch warn of TorchScript
        return torch.jit.trace(Net(num_classes).eval(), torch.ones(2, 3, 32, 32))


def frozen(num_classes):
    return Net(num_classes).requires_grad_(False)


def exits(num_classes):
    raise SystemExit(2)  # as argparse does


class Locked(Net):
    """It cannot be copied."""

    def __init__(self, num_classes=10, width=8):
        super().__init__(num_classes, width)
        self.lock = threading.Lock()


def ten_locked():
    return Locked(10)


def fails(num_classes):
    raise RuntimeError("no such weights")


number = 3


class HalfFrozen(Net):
    """Its body gets no gradient."""

    def forward(self, x):
        with torch.no_grad():
            x = self.forward_map(x)
        return self.head(x.mean((2, 3)))


class PartlyFloat32(Net):
    """Its body runs in float32, also under autocast."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.forward_map(x)
        return self.head(x.mean((2, 3)))


class Scaling(Net):
    """Creates a tensor in training mode alone."""

    def forward(self, x):
        x = self.forward_map(x).mean((2, 3))
        return self.head(x * torch.tensor(1.5) if self.training else x)


class Pair(Net):
    """Returns its own maps."""

    def forward(self, x):
        x = self.forward_map(x)
        pooled = x.mean((2, 3))
        return self.head(pooled), {"feats": [x], "preact_feats": [x], "pooled_feat": pooled}


class InPlace(Net):
    """Ends two maps in a ReLU in place, as a function and as a method."""

    def __init__(self, num_classes=10, width=8):
        super().__init__(num_classes, width)
        self.more, self.last = nn.Conv2d(4 * width, 4 * width, 3, 2, 1), nn.Conv2d(4 * width, 4 * width, 3, 2, 1)

    def forward_map(self, x):
        return self.last(torch.relu_(self.more(super().forward_map(x)))).relu_()


class SwitchingInTraining(Net):
    """Switches autocast on in training alone."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            x = self.forward_map(x)
        return self.head(x.float().mean((2, 3)))


class AskingForAutocast(Net):
    """Does something else under autocast."""

    def forward(self, x):
        x = self.forward_map(x).mean((2, 3))
        return self.head(x * 2 if self.training and torch.is_autocast_enabled("cpu") else x)
