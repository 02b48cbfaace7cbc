"""Adapted models, with images of their own, use tensors of the device alone and do not wait for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers._plugins import build_distiller
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.solver.frozen_batchnorm import freeze_statistics
from mdistiller.models import InputSpec, build_model, give_own_input
from tests.conftest import REPO
from tests.distillers.one_step import batch
from tests.fake_cuda import FaultyStep, check_distiller, check_model, fake_cuda

FILE = f"{REPO / 'tests/models/adapters/made_models.py'}:"
VIT = "timm/vit_tiny_patch16_224"
ARGUMENTS = {VIT: {"patch_size": 4, "depth": 2, "embed_dim": 48}, "timm/convnext_atto": {"depths": [1, 1, 1, 1]}}
MODELS = [
    *("timm/resnet10t", VIT, "timm/convnext_atto", "torchvision/mobilenet_v3_small", "torchvision/resnet18"),
    *(f"{FILE}{name}" for name in ("Net", "Tokens", "Wrapped", "Skipping")),  # of graphs and, the last two, of hooks
]
GIVEN = InputSpec(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
OWN = InputSpec(48, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def build(name: str, size: int = 32) -> torch.nn.Module:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    return build_model(name, 7, "imagefolder", size, ARGUMENTS.get(name))


@pytest.mark.parametrize("name", MODELS)
def test_a_model(name: str) -> None:
    model = build(name)
    freeze_statistics(model)
    check_model(name, model, batch()[0])
    with fake_cuda() as gpu:
        _, feats = gpu.move(model.eval())(gpu.move(batch()[0]))
        assert {tensor.device for tensor in [*feats["feats"], feats["final_map"], feats["pooled_feat"]]} == {gpu.device}


@pytest.mark.parametrize("name", ["timm/resnet10t", VIT, "torchvision/resnet18", f"{FILE}Net", "resnet8"])
def test_images_of_its_own(name: str) -> None:
    check_model(name, give_own_input(build(name, OWN.size), OWN, GIVEN), batch()[0])


def test_a_decision_about_the_images_waits_for_the_device() -> None:
    with pytest.raises(FaultyStep, match="made_models"):
        check_model("Deciding", build(f"{FILE}Deciding"), batch()[0])


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    ("teacher", "student"), [(VIT, f"{FILE}Net"), (f"{FILE}Wrapped", "timm/resnet10t"), ("torchvision/resnet18", VIT)]
)
@pytest.mark.parametrize("method", ["KD", "SFAKD", "REVIEWKD"])
def test_a_step(method: str, teacher: str, student: str, gradients: bool) -> None:
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "DATASET.INPUT_SIZE", "32"])
    models = build(student), give_own_input(build(teacher, OWN.size), OWN, GIVEN)
    distiller = build_distiller(method, *models, cfg, 60)
    distiller.attach_data(SimpleNamespace(targets=torch.arange(60) % 7))
    image, target = batch()
    check_distiller(method, distiller, {"image": image, "target": target, "index": torch.arange(4)}, gradients)
