"""The trainer's steps, the meter, the loss scaler, the teacher cache and the folded teacher on a fake device."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from mdistiller.dataset import get_dataset
from mdistiller.distillers import distiller_dict
from mdistiller.engine.meter import EpochMeter
from mdistiller.engine.speed.fast_networks import FastNetworks
from mdistiller.engine.speed.precision import Precision
from mdistiller.engine.speed.teacher_cache import CachedTeacher
from mdistiller.engine.speed.vector_table import MemoryTable
from mdistiller.engine.trainer import trainer_dict
from mdistiller.models import build_model
from tests.conftest import take_step
from tests.engine.test_trainer import settings
from tests.fake_cuda import FaultyStep, fake_cuda


def build(cfg):
    student, teacher = (build_model(name, 3, "imagefolder", 16) for name in ("resnet8", "resnet14"))
    return distiller_dict[cfg.DISTILLER.TYPE](student, teacher, cfg).train()


@pytest.mark.parametrize(("trainer", "method"), [("base", "SFAKD"), ("base", "CRD"), ("dot", "KD")])
def test_steps_of_the_trainer(image_folder, trainer, method):
    options = ["SOLVER.TRAINER", trainer, "DATASET.IN_MEMORY", "yes", "CRD.NCE.K", "8"]
    cfg = settings(image_folder, *options, method=method)
    distiller = build(cfg).to(memory_format=torch.channels_last)
    distiller.attach_data(SimpleNamespace(targets=torch.arange(36) % 3))
    with fake_cuda(gradients=True) as gpu, mock.patch.object(distiller, "to", lambda **_: distiller):
        # `to` is done, and newer versions of PyTorch cannot swap fake parameters
        loader, *_ = get_dataset(cfg, gpu.device)
        trainer = trainer_dict[trainer]("run", gpu.move(distiller), loader, None, cfg)
        batches = iter(loader)
        for step in range(2):  # momenta exist from the second step on
            batch = next(batches)
            with gpu.step(method):
                losses, logits = trainer.train_step(trainer.in_memory_format(batch), 1, step, len(loader))
                trainer.meter.add(step, losses, logits, batch)
        state = [value for entry in trainer.step.optimizer.state.values() for value in entry.values()]
        assert state
        assert all(value.device == gpu.device for value in state)


def test_the_loss_scaler(image_folder):
    cfg = settings(image_folder, method="KD")
    distiller = build(cfg)
    with fake_cuda(gradients=True) as gpu:
        scaler = torch.amp.GradScaler("cuda")
        update = trainer_dict["base"].update_rule(cfg, gpu.move(distiller).get_learnable_parameters(), scaler)
        batch = gpu.move({"image": torch.randn(4, 3, 16, 16), "target": torch.arange(4) % 3})
        with gpu.step("KD"), pytest.raises(Exception, match="_local_scalar_dense"):
            take_step(update, distiller(**batch)[1])  # it reads whether the gradients are finite: fake ones cannot tell

        def step(optimizer, state, *args, **kwargs):
            assert all(found.device == gpu.device for found in state["found_inf_per_device"].values())
            return optimizer.step()

        with mock.patch.object(torch.amp.GradScaler, "_maybe_opt_step", lambda self, *args, **kwargs: step(*args)):
            scaler = torch.amp.GradScaler("cuda")
            update = trainer_dict["base"].update_rule(cfg, distiller.get_learnable_parameters(), scaler)
            for _ in range(2):
                with gpu.step("KD"):
                    take_step(update, distiller(**batch)[1])


def test_the_meter_waits_in_sync_alone():
    with fake_cuda() as gpu:
        meter = EpochMeter(1)
        batch = gpu.move({"image": torch.zeros(4, 3, 8, 8), "target": torch.arange(4), "index": torch.arange(4)})
        for step in (1, 2):
            with gpu.step("meter"):
                losses = {name: torch.ones((), device=gpu.device) for name in ("loss_ce", "loss_kd")}
                meter.add(step, losses, torch.zeros(4, 7, device=gpu.device), batch)
        with pytest.raises(FaultyStep, match=r"^meter, mdistiller/engine/meter\.py line "), gpu.step("meter"):
            meter.sync()
        saved = {"names": list(losses), "images": 4, "sums": {"loss_ce": 2.0, "loss_kd": 1.0}, "correct": [1, 2]}
        meter.load_state_dict(saved, gpu.device)
        with gpu.step("meter"):
            meter.add(3, losses, torch.zeros(4, 7, device=gpu.device), batch)


def test_the_teacher_cache(image_folder):
    cfg = settings(image_folder, "DATASET.PADDING", "1", "DATASET.IN_MEMORY", "yes", method="KD")
    distiller = build(cfg)
    with fake_cuda() as gpu:
        loader, *_ = get_dataset(cfg, gpu.device)
        gpu.move(distiller)
        table = MemoryTable(loader.num_images * loader.num_variants, 67, torch.float16, gpu.device)
        widths, half = {"logits": 3, "pooled": 64}, Precision(gpu.device.type, torch.float16)
        distiller.teacher = CachedTeacher(distiller.teacher, widths, table, half, print)
        loader.set_epoch(1)
        for batch in distiller.teacher.serve(loader, iter(loader)):  # fills the table
            assert distiller.teacher(batch["image"])[0].device == gpu.device
        first, *others = loader
        served = distiller.teacher.serve(loader, iter([first, *others]))
        with gpu.step("teacher cache"):
            for batch in served:
                distiller(**batch, epoch=1)
        assert table.filled() == pytest.approx(1 / loader.num_variants)


@pytest.mark.parametrize("method", ["KD", "SFAKD"])
def test_the_folded_teacher(image_folder, method):
    cfg = settings(image_folder, "DATASET.IN_MEMORY", "yes", method=method)
    distiller = build(cfg)
    loader, *_ = get_dataset(cfg, torch.device("cpu"))
    with fake_cuda() as gpu:
        # `meta`, which older versions of PyTorch need here, has no autocast
        precision = Precision(gpu.device.type, torch.float16 if gpu.device.type == "cuda" else None)
        networks = FastNetworks(distiller, loader, cfg, precision, print)
        with networks.in_place():
            gpu.move(distiller)
            for batch in islice(loader, 2):
                batch = gpu.move(batch)
                with gpu.step(method), precision.autocast():
                    distiller(**batch, epoch=1)
