"""Small networks and data as users of the Python API have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

SIZE = 16  # px, of the images in `image_folder`
QUICK = {"epochs": 1, "batch_size": 8, "lr": 0.05, "num_workers": 0, "input_size": SIZE, "amp": "off"}


class OwnNet(nn.Module):
    """Returns logits alone."""

    def __init__(self, width=8, num_classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, image):
        return self.fc(self.stage(self.stem(image)).mean((2, 3)))


class Pictures(torch.utils.data.Dataset):
    """The images of a folder with `<class>/<image>`, as arrays, with labels."""

    def __init__(self, folder, change=lambda image: image):
        self.files = sorted(folder.rglob("*.png"), key=lambda file: (file.parent.name, str(file)))
        self.change = change

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        file = self.files[index]
        with Image.open(file) as image:
            return self.change(np.asarray(image)), int(file.parent.name[-1])


@pytest.fixture
def quick():
    return dict(QUICK)
