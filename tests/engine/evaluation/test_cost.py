"""The cost of deployed models, compared with counts by hand."""

import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.distillers.SFAKD import SFAKDHead
from mdistiller.distillers.SimKD import SimKDHead
from mdistiller.engine.evaluation.cost import Cost, deployed_cost
from mdistiller.models import build_model


class Tiny(nn.Module):
    """A convolution, BatchNorm and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, image):
        final_map = self.norm(self.conv(image)).relu()
        pooled = final_map.mean((2, 3))
        return self.fc(pooled), {"final_map": final_map, "pooled_feat": pooled}

    def get_classifier(self):
        return self.fc


def test_a_bare_model():
    convolution = 3 * 4 * 9
    assert deployed_cost(Tiny(), None, 6) == Cost(convolution + 8 + 4 * 5 + 5, convolution * 36 + 4 * 5, 0, 0)


def test_the_classifier_that_a_head_replaces_does_not_count():
    head = SimKDHead(4, 6, 6, 6, 7, factor=2)
    cost = deployed_cost(Tiny(), head, 6)
    assert cost.head_parameters == sum(p.numel() for p in head.parameters())
    assert cost.parameters == 3 * 4 * 9 + 8 + cost.head_parameters
    assert cost.macs - cost.head_macs == 3 * 4 * 9 * 36 + 4 * 5  # a model that cannot stop early runs whole
    width = 6 // 2  # 1x1, 3x3 and 1x1 convolutions on 36 positions, and the classifier
    assert cost.head_macs == 36 * (4 * width + 9 * width * width + width * 6) + 6 * 7


def test_modes_and_statistics_stay():
    model = Tiny()
    model.norm.eval()
    deployed_cost(model, SFAKDHead(4, 6, 6, 8, 5), 6)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert model.norm.num_batches_tracked == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_resnet8x4_has_its_known_size():
    cost = deployed_cost(build_model("resnet8x4", 100), None, 32)
    assert cost.parameters == sum(p.numel() for p in build_model("resnet8x4", 100).parameters()) == 1_233_540
    assert 176e6 < cost.macs < 178e6  # 177 M, as the literature gives it


def test_attention_counts():
    """Two products of 4 × 4 tokens and 8 channels, which the fused form would hide."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, image):
            tokens = torch.ones(1, 1, 4, 8) * self.weight + image.mean()
            return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1), {}

    assert deployed_cost(Attention(), None, 6).macs == 2 * 4 * 4 * 8


def test_float64():
    assert deployed_cost(Tiny().double(), None, 6).parameters > 0
    assert torch.get_default_dtype() == torch.float32
