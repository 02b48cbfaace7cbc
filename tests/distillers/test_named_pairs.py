"""One training step of pairs of models by name: it is finite and reaches what it trains, or one line says why not."""

from __future__ import annotations

import pytest
import torch
from one_step import batch, check_step

from mdistiller.distillers._plugins import build_distiller
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import REPO

FILE = f"{REPO / 'tests/models/adapters/made_models.py'}:"
ARGUMENTS = {
    "timm/vit_tiny_patch16_224": {"patch_size": 4, "depth": 4, "embed_dim": 48},
    "timm/convnext_atto": {"depths": [1, 1, 1, 1]},
}
PAIRS = [  # teacher, student
    (f"{FILE}Net", "resnet8"),
    (f"{FILE}Deciding", f"{FILE}Tokens"),
    ("resnet14", "timm/vit_tiny_patch16_224"),
    ("timm/vit_tiny_patch16_224", f"{FILE}Net"),
    ("timm/convnext_atto", "resnet8"),
    ("timm/resnet10t", "timm/convnext_atto"),
]
NO_AVERAGE = ("timm/vit_tiny_patch16_224", "timm/convnext_atto")  # a class token, and a norm after the pooling
SIGNED = NO_AVERAGE  # their last layer before the classifier is a LayerNorm


def build(method, teacher, student, *overrides):
    torch.manual_seed(0)
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32", *overrides])
    models = [build_model(name, 7, "imagefolder", 32, ARGUMENTS.get(name)) for name in (student, teacher)]
    return build_distiller(method, *models, cfg, 8).train()


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
@pytest.mark.parametrize("method", ["KD", "SFAKD", "SIMKD", "REVIEWKD"])
def test_a_step(method, teacher, student):
    if "timm/" in teacher + student:
        pytest.importorskip("timm")
    if method == "SIMKD" and teacher in NO_AVERAGE:
        with pytest.raises(UserError, match="SIMKD needs a teacher whose classifier consumes the average") as caught:
            build(method, teacher, student)
        assert "\n" not in str(caught.value)
        return
    distiller = build(method, teacher, student)
    if method == "SFAKD":
        assert distiller.head.options["relu"] == (teacher not in SIGNED)
    image, target = batch()
    check_step(distiller, image=image, target=target, index=torch.arange(4), epoch=1)
    assert distiller.eval()(image=image).shape == (4, 7)


@pytest.mark.parametrize("method", ["SFAKD", "SIMKD"])
def test_the_last_relu_can_be_chosen(method):
    for given, last in (("True", torch.nn.ReLU), ("False", torch.nn.BatchNorm2d), ("None", torch.nn.ReLU)):
        head = build(method, "resnet14", "resnet8", f"{method}.PROJECTOR_RELU", given).head
        assert type([*head.projector.modules()][-1]) is last
