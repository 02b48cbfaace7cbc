"""Every method's training step and test step use tensors of the device alone, and do not wait for it."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.validate import check_settings
from mdistiller.models import build_model
from tests.distillers.one_step import PAIRS, batch
from tests.fake_cuda import check_distiller, check_model

VARIANTS = {
    "SFAKD on maps": ("SFAKD", "SFAKD.ALIGN", "map", "SFAKD.CE_WEIGHT", "1"),
    "SFAKD, learnable sigma": ("SFAKD", "SFAKD.LEARNABLE_SIGMA", "True"),
    "SFAKD, hard mask": ("SFAKD", "SFAKD.MASK.TYPE", "hard", "SFAKD.SIGMA", "0.3"),
    "SFAKD, no mask": ("SFAKD", "SFAKD.MASK.TYPE", "none", "SFAKD.FILTER_INIT", "uniform"),
    "SFAKD, one branch": ("SFAKD", "SFAKD.FREQUENCY_BRANCH", "False"),
    "SFAKD, own classifier": ("SFAKD", "SFAKD.CLASSIFIER", "student", "SFAKD.CE_WEIGHT", "1"),
    "LSKD": ("KD", "KD.LOGIT_STAND", "True"),
    "CRD, relaxed": ("CRD", "CRD.MODE", "relax"),
    "MLKD, masked": ("MLKD", "MLKD.CONFIDENCE_MASK", "True"),
    "KDSVD, MDistiller's layout": ("KDSVD", "KDSVD.LAYOUT", "mdistiller"),
    "OFD, teacher in training mode": ("OFD", "OFD.TEACHER_TRAIN_MODE", "True"),
}
METHODS = {**{method: (method,) for method in distiller_dict}, **VARIANTS}
# what reads only logits does not depend on the pair; KD stands for it
DEPENDS_ON_PAIR = [
    "KD",
    *(name for name in distiller_dict if {"maps", "pooled"} & set(distiller_dict[name].teacher_needs)),
]
HALF_PRECISION = [
    *((name, pair) for name in METHODS for pair in PAIRS[:1]),
    *((name, PAIRS[1 + number % 2]) for number, name in enumerate(DEPENDS_ON_PAIR)),
]
OTHER_MODELS = [  # with data set and size of the images
    ("ShuffleV2", "cifar100", 32),
    ("ResNet18", "cifar100", 32),
    ("MobileNetV2", "tiny_imagenet", 64),
    ("MobileNetV1", "imagenet", 64),
    ("ResNet18", "imagenet", 64),
]


@lru_cache(maxsize=None)
def model(name):
    return build_model(name, 7)


def check(name, teacher, student, input_size=32, gradients=False):
    method, *options = METHODS[name]
    size = ["DATASET.INPUT_SIZE", str(input_size), "CRD.NCE.K", "8"]
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, *size, *options])
    check_settings(cfg)
    distiller = distiller_dict[method](model(student), model(teacher), cfg)
    distiller.attach_data(SimpleNamespace(targets=torch.arange(60) % 7))
    image, target = batch()
    image = torch.nn.functional.interpolate(image, size=(input_size, input_size))
    check_distiller(name, distiller, {"image": image, "target": target, "index": torch.arange(4)}, gradients)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_with_gradients(name):
    check(name, *PAIRS[0], gradients=True)


@pytest.mark.parametrize(("name", "pair"), HALF_PRECISION, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_a_step_in_half_precision(name, pair):
    check(name, *pair)


def test_a_filter_of_large_maps():
    check("SFAKD", *PAIRS[0], input_size=96)


@pytest.mark.parametrize(("name", "dataset", "size"), OTHER_MODELS)
def test_a_model(name, dataset, size):
    check_model(name, build_model(name, 7, dataset, size), torch.ones(2, 3, size, size))
