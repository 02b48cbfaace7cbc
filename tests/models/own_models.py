"""A plug-in file with models that have only MDistiller's `forward`, or return only logits."""

import torch.nn.functional as F
from torch import nn

from mdistiller.models import cifar_model_dict, register_model


class Contract(nn.Module):
    """A model with only MDistiller's `forward`; a second linear layer has the shape of the classifier."""

    def __init__(self, num_classes=100):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stage1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.stage2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32))
        self.dropout = nn.Dropout(0.1)
        self.linear = nn.Linear(32, num_classes)
        self.auxiliary = nn.Linear(32, num_classes)
        for layer in (self.linear, self.auxiliary):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        preacts, feats = [], [x]
        for stage in (self.stem, self.stage1, self.stage2):
            preacts.append(stage(feats[-1]))
            feats.append(F.relu(preacts[-1]))
        pooled = self.dropout(F.adaptive_avg_pool2d(feats[-1], 1).flatten(1))
        return self.linear(pooled), {"feats": feats[1:], "preact_feats": preacts, "pooled_feat": pooled}


class Plain(Contract):
    """It returns only logits; its graph shows the rest."""

    def forward(self, x):
        return super().forward(x)[0]


class LogitsAlone(Contract):
    """Its logits are not those of a linear layer, so no feature can be found."""

    def forward(self, x):
        return super().forward(x)[0].log_softmax(1)


cifar_model_dict["contract"] = (Contract, None)
register_model("plain")(Plain)
register_model("logits_alone")(LogitsAlone)
