"""One training step of each kind of teacher with each kind of student: finite, with gradients where they belong.

docs/models.md has the table. What a pair does not permit is refused in one line.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch
from one_step import batch, check_step

from mdistiller.distillers._plugins import build_distiller
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import REPO

FILE = f"{REPO / 'tests/models/adapters/made_models.py'}:"
TEACHERS = {
    "zoo": "resnet14",
    "torchvision CNN": "torchvision/mobilenet_v2",
    "timm CNN": "timm/resnet10t",
    "timm ViT": "timm/vit_tiny_patch16_224",
    "timm ConvNeXt": "timm/convnext_atto",
    "user's module": f"{FILE}Net",
    "user's module without a graph": f"{FILE}Wrapped",
}
STUDENTS = {
    "zoo": "resnet8",
    "torchvision": "torchvision/mobilenet_v2",
    "timm CNN": "timm/mobilenetv3_small_050",
    "timm ViT-tiny": "timm/vit_tiny_patch16_224",
    "user's module": f"{FILE}Tokens",
}
ARGUMENTS = {  # tiny variants
    "timm/vit_tiny_patch16_224": {"patch_size": 8, "depth": 4, "embed_dim": 48},
    "timm/convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "timm/resnet10t": {"channels": [8, 16, 24, 32]},
    "torchvision/mobilenet_v2": {
        "width_mult": 0.25,
        "inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 1, 2], [6, 64, 1, 2]],
    },
}
METHODS = ("KD", "SFAKD", "SIMKD", "REVIEWKD")
NO_AVERAGE = ("timm ViT", "timm ConvNeXt")  # a class token, and a norm after the pooling
SIGNED = NO_AVERAGE  # their last layer before the classifier is a LayerNorm


@lru_cache(maxsize=None)
def built(name):
    return build_model(name, 7, "imagefolder", 32, ARGUMENTS.get(name))


def build(method, teacher, student, *overrides):
    torch.manual_seed(0)
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32", *overrides])
    models = [copy.deepcopy(built(name)) for name in (student, teacher)]
    return build_distiller(method, *models, cfg, 8).train()


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_step(teacher, student):
    names = TEACHERS[teacher], STUDENTS[student]
    if "timm" in teacher + student:
        pytest.importorskip("timm")
    for method in METHODS:
        if method == "SIMKD" and teacher in NO_AVERAGE:
            with pytest.raises(
                UserError, match="SIMKD needs a teacher whose classifier consumes the average"
            ) as caught:
                build(method, *names)
            assert "\n" not in str(caught.value)
            continue
        distiller = build(method, *names)
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
