"""The configurations of Tiny-ImageNet, and a training step of every method with their MobileNetV2."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.models import build_model
from mdistiller.models.cifar.mobilenetv2_full import FullMobileNetV2
from tests.conftest import REPO
from tests.distillers.one_step import batch, check_gradients

CONFIGS = sorted((REPO / "configs/tiny_imagenet").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_recipe_is_upstreams(path):
    cfg = load_cfg(str(path))
    solver, data = cfg.SOLVER, cfg.DATASET
    assert (solver.BATCH_SIZE, solver.EPOCHS, solver.LR, solver.WEIGHT_DECAY, solver.MOMENTUM) == (
        256,
        200,
        0.2,
        5e-4,
        0.9,
    )
    assert (solver.SCHEDULE, solver.LR_DECAY_STAGES, solver.LR_DECAY_RATE) == ("step", [60, 120, 160], 0.1)
    assert (data.TYPE, data.AUGMENT, data.ROTATION, data.FLIP) == ("tiny_imagenet", "rotate_flip", 20.0, True)
    assert (data.MEAN, data.STD) == ([0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262])
    assert (cfg.KD.TEMPERATURE, cfg.KD.LOSS.CE_WEIGHT, cfg.KD.LOSS.KD_WEIGHT) == (4.0, 0.1, 0.9)
    trainer, delta = solver.TRAINER, solver.DOT.DELTA
    assert (trainer, delta) == ("dot" if path.parent.name == "dot" else "base", 0.075)
    assert cfg.DISTILLER.TEACHER == "ResNet18" or cfg.DISTILLER.TYPE == "NONE"


@pytest.fixture(scope="module")
def models():
    """Student and teacher, built once for all methods."""
    torch.manual_seed(0)
    return [build_model(name, 7, "tiny_imagenet", 32) for name in ("MobileNetV2", "ResNet18")]


def step(method, student, teacher, *overrides):
    """Take a step in float32: in bfloat16 the narrow depthwise convolutions take ten times as long on a CPU."""
    image, target = batch()
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "DATASET.INPUT_SIZE", "32", "CRD.NCE.K", "3", *overrides])
    distiller = distiller_dict[method](copy.deepcopy(student), copy.deepcopy(teacher), cfg).train()
    distiller.attach_data(SimpleNamespace(targets=torch.arange(7).repeat(3), num_images=21))
    logits, losses = distiller(image=image, target=target, index=torch.arange(4), epoch=1)
    assert logits.shape == (4, 7)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    check_gradients(distiller)


@pytest.mark.parametrize("method", [name for name in distiller_dict if name != "NONE"])
def test_a_step(models, method):
    student, teacher = models
    assert isinstance(student, FullMobileNetV2)
    step(method, student, teacher)


@pytest.mark.parametrize(("method", "overrides"), [("SFAKD", ("SFAKD.ALIGN", "map")), ("SIMKD", ())])
def test_a_step_with_it_as_the_teacher(models, method, overrides):
    teacher, _ = models
    step(method, build_model("resnet8", 7), teacher, *overrides)
