"""Every method on published pairs: a training step on real images, those of the demo."""

from __future__ import annotations

import copy
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

from mdistiller.dataset.fashion_demo import FOLDER, MEAN, STD, fashion_demo
from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.models import build_model
from tests.conftest import REPO
from tests.distillers.one_step import check_gradients

PAIRS = sorted(path.stem for path in (REPO / "configs/cifar100/sfakd").glob("*.yaml"))
ON_ALL = ("REVIEWKD", "SFAKD")  # KD, which reads logits alone, does not depend on the pair
READS_FEATURES = [name for name, method in distiller_dict.items() if {"maps", "pooled"} & {*method.teacher_needs}]


def pairs_of(method):
    """The pairs to try a method on: those that read only logits do not depend on the pair, the others take turns."""
    if method in ON_ALL:
        return PAIRS
    return PAIRS[READS_FEATURES.index(method) % 6 :: 6] if method in READS_FEATURES else PAIRS[:1]


STEPS = [(pair, method) for method in distiller_dict for pair in pairs_of(method)]
NUM_CLASSES = 100
BATCH = 3


@pytest.fixture(scope="module")
def images():
    """`(image [3, 3, 32, 32], target [3])`: the first validation image of each of three classes."""
    splits = fashion_demo(load_cfg(None, ["DATASET.ROOT", str(REPO / "data" / FOLDER)]))
    first = [splits.val.targets.tolist().index(label) for label in range(BATCH)]
    pixels = torch.from_numpy(splits.val.images[first]).float() / 255
    image = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
    return image, torch.arange(BATCH) * 16


@lru_cache(maxsize=None)
def pair(name):
    """Return student, teacher and the teacher's state, built once for all methods."""
    cfg = load_cfg(str(REPO / f"configs/cifar100/sfakd/{name}.yaml"))
    torch.manual_seed(0)
    student, teacher = (build_model(name, NUM_CLASSES) for name in (cfg.DISTILLER.STUDENT, cfg.DISTILLER.TEACHER))
    return student, teacher, copy.deepcopy(teacher.state_dict())


@pytest.mark.parametrize(("name", "method"), STEPS)
def test_a_step_on_real_images(images, name, method):
    image, target = images
    student, teacher, state = pair(name)
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "DATASET.INPUT_SIZE", "32", "CRD.NCE.K", "64"])
    distiller = distiller_dict[method](copy.deepcopy(student), teacher, cfg)
    distiller.attach_data(SimpleNamespace(targets=torch.arange(500) % NUM_CLASSES))
    logits, losses = distiller.train()(image=image, target=target, index=torch.arange(BATCH), epoch=1)

    assert logits.shape == (BATCH, NUM_CLASSES)
    assert logits.isfinite().all()
    for name, loss in losses.items():
        assert name.startswith("loss_")
        assert loss.shape == ()
        assert loss.isfinite(), name
    sum(losses.values()).backward()
    check_gradients(distiller)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, state[key]), key
