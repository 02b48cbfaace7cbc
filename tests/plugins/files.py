"""Plug-ins as users write them, and what their tests share."""

from __future__ import annotations

import json
import os
import textwrap

from tests.processes import run_python

# In the style of MDistiller's forks: no register, `super` with arguments, a map flattened by `view`, a loss that is
# no scalar, an input size of two numbers, a section in capitals.
FORK = '''
import torch
import torch.nn as nn
import torch.nn.functional as F

from ._base import Distiller
from ._common import ConvReg, get_feat_shapes
from .KD import kd_loss


class HintedKD(Distiller):
    """Hints and logits at once."""

    def __init__(self, student, teacher, cfg):
        super(HintedKD, self).__init__(student, teacher)
        self.ce_loss_weight = cfg.HINTEDKD.LOSS.CE_WEIGHT
        self.kd_loss_weight = cfg.HINTEDKD.LOSS.KD_WEIGHT
        self.feat_loss_weight = cfg.HINTEDKD.LOSS.FEAT_WEIGHT
        self.temperature = cfg.HINTEDKD.TEMPERATURE
        self.hint_layer = cfg.HINTEDKD.HINT_LAYER
        feat_s_shapes, feat_t_shapes = get_feat_shapes(self.student, self.teacher, cfg.HINTEDKD.INPUT_SIZE)
        self.conv_reg = ConvReg(feat_s_shapes[self.hint_layer], feat_t_shapes[self.hint_layer])

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.conv_reg.parameters())

    def get_extra_parameters(self):
        num_p = 0
        for p in self.conv_reg.parameters():
            num_p += p.numel()
        return num_p

    def forward_train(self, image, target, **kwargs):
        logits_student, feature_student = self.student(image)
        with torch.no_grad():
            logits_teacher, feature_teacher = self.teacher(image)
        f_s = self.conv_reg(feature_student["feats"][self.hint_layer])
        f_t = feature_teacher["feats"][self.hint_layer]
        f_s, f_t = f_s.view(f_s.shape[0], -1), f_t.view(f_t.shape[0], -1)
        losses_dict = {
            "loss_ce": self.ce_loss_weight * F.cross_entropy(logits_student, target),
            "loss_kd": self.kd_loss_weight * kd_loss(logits_student, logits_teacher, self.temperature),
            "loss_feat": self.feat_loss_weight * F.mse_loss(f_s, f_t).view(1),
        }
        return logits_student, losses_dict
'''

# the lines that a fork adds to MDistiller's cfg.py
FORK_CFG = """
from yacs.config import CfgNode as CN

CFG = CN()
CFG.HINTEDKD = CN()
CFG.HINTEDKD.TEMPERATURE = 4
CFG.HINTEDKD.HINT_LAYER = 2
CFG.HINTEDKD.INPUT_SIZE = (16, 16)
CFG.HINTEDKD.LOSS = CN()
CFG.HINTEDKD.LOSS.CE_WEIGHT = 1.0
CFG.HINTEDKD.LOSS.KD_WEIGHT = 0.5
CFG.HINTEDKD.LOSS.FEAT_WEIGHT = 0.1
"""
FORK_YAML = """
HINTEDKD:
  TEMPERATURE: 4
  HINT_LAYER: 2
  INPUT_SIZE: [16, 16]
  LOSS: {CE_WEIGHT: 1.0, KD_WEIGHT: 0.5, FEAT_WEIGHT: 1e-1}
"""

# in the style of this library, with a head that is deployed
HEADED = """
from torch import nn
from mdistiller.distillers import Distiller, Head, head_dict, register


@head_dict.register("LINEAR")
class LinearHead(Head):
    kind = "LINEAR"

    def __init__(self, in_channels, out_channels, num_classes, bias=True):
        options = dict(in_channels=in_channels, out_channels=out_channels, num_classes=num_classes, bias=bias)
        super().__init__(nn.Conv2d(in_channels, out_channels, 1), out_channels, num_classes, bias, options)


@register("HEADED")
class Headed(Distiller):
    DEFAULTS = {"WEIGHT": 1.0}

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.weight = cfg.HEADED.WEIGHT
        self.head = LinearHead.with_classifier(teacher.get_classifier(), in_channels=64)

    def forward_train(self, image, target, **kwargs):
        final_map = self.student(image)[1]["final_map"]
        pooled = self.teacher(image)[1]["pooled_feat"]
        output = self.head(final_map)
        return output.logits, {"loss_feat": self.weight * (output.pooled - pooled).square().mean()}
"""


def write(folder, **files):
    """Write `name="content"` to `folder/name.py` or, for `name_yaml`, to `folder/name.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, kind = name.rpartition("_yaml")
        path = folder / (f"{stem}.yaml" if stem and not kind else f"{name}.py")
        path.write_text(textwrap.dedent(content), encoding="utf-8")


def process(root, *arguments):
    """Run a tool of this repository with the package and the modules below `root`, as a user's shell would."""
    return run_python(*arguments, PYTHONPATH=os.pathsep.join(map(str, root)))


def losses_of(name="run"):
    with open(f"output/{name}/metrics.jsonl", encoding="utf-8") as rows:
        return [json.loads(row) for row in rows]
