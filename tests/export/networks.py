"""Networks as users write them, which return logits alone."""

from __future__ import annotations

import torch
from torch import nn


def block(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Plain(nn.Module):
    """Four convolutions and a classifier."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.blocks = nn.Sequential(*(block(*channels) for channels in ((3, 8, 2), (8, 8), (8, 8), (8, 16, 2))))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, image):
        return self.fc(self.blocks(image).mean((2, 3)))


class Decides(Plain):
    """Its graph is unknown, because it looks at values; torch.export cannot export it."""

    def forward(self, image):
        feature = self.blocks(image)
        return self.fc((feature if feature.max() > -1 else -feature).mean((2, 3)))


class Counts(Plain):
    """Makes a number of the size of the batch, which torch.export understands only in its strict mode."""

    def forward(self, image):
        return self.fc(self.blocks(image).reshape(int(image.shape[0]), 16, -1).mean(2))


class Loops(Plain):
    """Computes image by image, so that any program of it has a fixed number of images."""

    def forward(self, image):
        return self.fc(torch.cat([self.blocks(one[None]) for one in image]).mean((2, 3)))
