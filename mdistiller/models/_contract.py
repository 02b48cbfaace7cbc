"""The interface of the models in this package, as distillers use it.

Shapes: `B` batch, `H`/`W` pixels, `N` classes, `C` channels of the pooled feature.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn


class Stages(NamedTuple):
    """The maps of one forward pass, from the stem to the last stage.

    Attributes:
        feats: stage maps after their activation, `[B, C_i, H_i, W_i]` each.
        preact_feats: the same maps before that activation.
        final_map: the last stage's activated map; `feats[-1]` for every family but WRN.
    """

    feats: List[Tensor]
    preact_feats: List[Tensor]
    final_map: Tensor


class ClassifierModel(nn.Module):
    """An image classifier in two halves: `forward_stages` up to the final map, `forward_tail` from there to the logits.

    A subclass sets `stage_channels`, and `classifier_name` if its `nn.Linear` is not called `fc`. It implements
    `forward_stages` and `get_bn_before_relu`, and overrides `forward_map` if there are layers between the final map
    and the pooling.
    """

    classifier_name = "fc"
    stage_channels: List[int]

    def forward_stages(self, image: Tensor) -> Stages:
        """Run `image [B, 3, H, W]` up to the final map."""
        raise NotImplementedError

    def forward_map(self, final_map: Tensor) -> Tensor:
        """Return the map `[B, C, H, W]` whose average over positions is the pooled feature."""
        return final_map

    def forward_pool(self, final_map: Tensor) -> Tensor:
        """Return the pooled feature `[B, C]`, the classifier's input, in the dtype of the classifier's weights."""
        return self.forward_map(final_map).mean((2, 3), dtype=self.get_classifier().weight.dtype)

    def forward_tail(self, final_map: Tensor) -> Tuple[Tensor, Tensor]:
        """Return `(logits [B, N], pooled_feat [B, C])` in the dtype of the weights, also under autocast."""
        pooled = self.forward_pool(final_map)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.get_submodule(self.classifier_name)(pooled), pooled

    def forward(self, image: Tensor) -> Tuple[Tensor, Dict[str, Any]]:
        """Return `(logits [B, N], feats)`.

        `feats` has the lists `feats` and `preact_feats` and the `final_map` (see `Stages`), and `pooled_feat [B, C]`,
        the classifier's input.
        """
        stages = self.forward_stages(image)
        logits, pooled = self.forward_tail(stages.final_map)
        return logits, {**stages._asdict(), "pooled_feat": pooled}

    def get_classifier(self) -> nn.Linear:
        """Return the linear layer that maps the pooled feature to the logits."""
        classifier = self.get_submodule(self.classifier_name)
        assert isinstance(classifier, nn.Linear)
        return classifier

    def get_stage_channels(self) -> List[int]:
        """Return the channels of each map in `feats`, stem first."""
        return list(self.stage_channels)

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        """Return, for each stage after the stem, the BatchNorm whose statistics describe its `preact_feats`.

        They are used by the margin ReLU of "A Comprehensive Overhaul of Feature Distillation" (2019).
        """
        raise NotImplementedError
