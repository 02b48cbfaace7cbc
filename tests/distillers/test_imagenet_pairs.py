"""A training step of every method on ImageNet's pairs, as the shipped configurations set them up.

SFAKD takes its steps in tests/tools/test_imagenet_commands.py. Methods that read only logits do not depend on the pair;
KD and DKD stand for them.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.models import build_model
from tests.conftest import REPO
from tests.distillers.one_step import check_step

CONFIGS = sorted((REPO / "configs/imagenet").glob("r*/*.yaml"))
ELSEWHERE = ("dist", "kd_lskd", "mlkd", "rld", "sfakd")


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem not in ELSEWHERE], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_a_step(path):
    torch.manual_seed(0)
    cfg = load_cfg(str(path), ["DATASET.INPUT_SIZE", "64"])
    names = (cfg.DISTILLER.STUDENT, cfg.DISTILLER.TEACHER)
    student, teacher = (build_model(name, 7, "imagenet", 64) for name in names)
    distiller = distiller_dict[cfg.DISTILLER.TYPE](student, teacher, cfg).train()
    target = torch.tensor([0, 3, 3, 6])
    distiller.attach_data(SimpleNamespace(targets=target, num_images=4))
    check_step(distiller, image=torch.randn(4, 3, 64, 64), target=target, index=torch.arange(4), epoch=1)


def test_the_pairs_have_every_published_method():
    both = {"at", "crd", "dist", "dkd", "dot", "kd", "mlkd", "ofd", "reviewkd", "rld", "sfakd"}
    published = {"r34_r18": both | {"cat_kd", "kd_lskd"}, "r50_mv1": both}
    assert {(path.parent.name, path.stem) for path in CONFIGS} == {
        (pair, method) for pair, methods in published.items() for method in methods
    }
