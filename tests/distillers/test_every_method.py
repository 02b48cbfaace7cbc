"""Every method on every published pair: a training step on real images.

The images are those of tin32-dev (Tiny-ImageNet at 32×32 px), read from the archive that `MDISTILLER_TIN32` names or
that lies at `shared/data/tin32-dev.tar.xz`, in the repository or beside it. They are never unpacked.
"""

from __future__ import annotations

import copy
import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.models import build_model
from tests.conftest import REPO
from tests.distillers.one_step import check_gradients

PAIRS = sorted(path.stem for path in (REPO / "configs/cifar100/sfakd").glob("*.yaml"))
NUM_CLASSES = 100
BATCH = 6
MEAN, STD = (0.489, 0.449, 0.397), (0.253, 0.247, 0.261)
PLACES = [folder / "shared/data/tin32-dev.tar.xz" for folder in (REPO, REPO.parent)]
ARCHIVE = Path(os.environ.get("MDISTILLER_TIN32") or next(filter(Path.is_file, PLACES), "")).absolute()


@pytest.fixture(scope="session")
def tin32():
    """`(image [6, 3, 32, 32], target [6])`: the first image of each of six classes."""
    if not ARCHIVE.is_file():
        pytest.skip("no tin32-dev.tar.xz: set MDISTILLER_TIN32 to the archive")
    pictures = {}
    with tarfile.open(ARCHIVE, "r|xz") as tar:
        for member in tar:
            split, wnid = member.name.split("/")[1:3] if member.name.endswith(".JPEG") else ("", "")
            if split == "train" and wnid not in pictures:
                pictures[wnid] = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB"))
                if len(pictures) == BATCH:
                    break
    pixels = torch.from_numpy(np.stack(list(pictures.values()))).float() / 255
    image = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
    return image, torch.arange(BATCH) * 16


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    """Student, teacher and the teacher's state, built once for all methods."""
    cfg = load_cfg(f"configs/cifar100/sfakd/{request.param}.yaml")
    torch.manual_seed(0)
    student, teacher = (build_model(name, NUM_CLASSES) for name in (cfg.DISTILLER.STUDENT, cfg.DISTILLER.TEACHER))
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    return SimpleNamespace(student=student, teacher=teacher, state=state)


@pytest.mark.parametrize("method", list(distiller_dict))
def test_a_step_on_real_images(pair, tin32, method):
    image, target = tin32
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "DATASET.INPUT_SIZE", "32", "CRD.NCE.K", "64"])
    distiller = distiller_dict[method](copy.deepcopy(pair.student), pair.teacher, cfg)
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
    for key, value in pair.teacher.state_dict().items():
        assert torch.equal(value, pair.state[key]), key
