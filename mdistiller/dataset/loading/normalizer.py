"""Normalization of images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..info import DatasetInfo


class Normalizer:
    """Normalizes uint8 images: `(x / 255 − mean) / std`, computed as one multiply-add."""

    def __init__(self, info: DatasetInfo, device: torch.device) -> None:
        mean = torch.tensor(info.mean, dtype=torch.float64)
        std = torch.tensor(info.std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().to(device)
        self.shift = (-mean / std).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Convert uint8 [B, S, S, 3] to float32 [B, 3, S, S] with channels_last strides."""
        return torch.addcmul(self.shift, images.float(), self.scale).permute(0, 3, 1, 2)
