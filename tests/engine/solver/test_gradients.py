"""Gradients in parts and their norm: the same step as of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mdistiller import distributed
from mdistiller.distillers import Distiller
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.solver.gradients import join_outputs, split_batch
from mdistiller.engine.solver.update_rules import SummedLosses
from mdistiller.engine.speed.teacher_cache import CachedTeacher
from mdistiller.engine.trainer import Trainer
from mdistiller.models import build_model
from tests.conftest import take_step
from tests.engine.test_trainer import rows, settings


def batch_of(size: int) -> dict[str, torch.Tensor]:
    image = torch.randn(size, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    return {"image": image, "target": torch.arange(size) % 5, "index": torch.arange(size)}


def test_parts_are_interleaved() -> None:
    batch = batch_of(7)
    parts = split_batch(batch, 3, 7)
    assert [part.batch["index"].tolist() for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    for part in parts:
        assert torch.equal(part.batch["image"], batch["image"][part.rows])
        assert part.batch["image"].is_contiguous(memory_format=torch.channels_last)
    (whole,) = split_batch(batch, 1, 7)
    assert whole.batch is batch


def test_no_part_has_a_single_image() -> None:
    assert [len(part.batch["index"]) for part in split_batch(batch_of(7), 6, 7)] == [3, 2, 2]
    assert len(split_batch(batch_of(3), 2, 3)) == 1


def test_a_pair_of_views_is_split() -> None:
    batch = {**batch_of(4), "image": [torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2)]}
    weak, strong = split_batch(batch, 2, 4)[1].batch["image"]
    assert (weak.shape, strong.shape, float(strong.min())) == ((2, 3, 2, 2), (2, 3, 2, 2), 1.0)


def test_parts_of_two_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [part.batch["index"].tolist() for part in split_batch(batch_of(9), 2, 9)]
    of_both: list[list[int]] = [[], []]
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        share = distributed.local_slice(slice(0, 9))
        own = {key: value[share] for key, value in batch_of(9).items()}
        for found, part in zip(of_both, split_batch(own, 2, 9)):
            found += part.batch["index"].tolist()
    assert of_both == whole == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]


def test_outputs_are_joined_in_order() -> None:
    parts = split_batch(batch_of(5), 2, 5)
    logits = torch.arange(10.0).view(5, 2)
    found = join_outputs((part, {"loss_ce": torch.tensor(1.0 + n)}, logits[part.rows]) for n, part in enumerate(parts))
    assert float(found[0]["loss_ce"]) == pytest.approx((3 * 1 + 2 * 2) / 5)
    assert torch.equal(found[1], logits)


class Smooth(Distiller):
    """A student without BatchNorm: its step does not depend on the parts."""

    needs_teacher = False

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)))

    def forward_train(self, image: torch.Tensor, target: torch.Tensor, **kwargs: object) -> tuple:
        logits = self.student(image)
        return logits, {"loss_ce": nn.functional.cross_entropy(logits, target), "loss_each": logits.square().mean(1)}


def trained(steps: int, *overrides: str) -> tuple:
    torch.manual_seed(3)
    distiller = Smooth().double()
    trainer = Trainer("run", distiller, None, None, load_cfg(None, ["SOLVER.AMP", "off", *overrides]))
    trainer.distiller.train()
    for step in range(steps):
        batch = batch_of(7)
        outputs = trainer.train_step({**batch, "image": batch["image"].double()}, 1, step, 10)
    return [parameter.detach() for parameter in distiller.parameters()], outputs


@pytest.mark.parametrize("parts", [2, 3])
def test_a_step_in_parts_is_the_step_of_the_batch(parts: int) -> None:
    whole, (losses, logits) = trained(3)
    divided, (losses_divided, logits_divided) = trained(3, "SOLVER.ACCUMULATE", str(parts))
    for a, b in zip(whole, divided):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(logits_divided, logits, rtol=1e-12, atol=1e-12)
    assert losses_divided == {name: pytest.approx(float(loss)) for name, loss in losses.items()}


def test_gradients_are_clipped_over_all_parameters() -> None:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    settings = ["SOLVER.LR", "1", "SOLVER.MOMENTUM", "0", "SOLVER.WEIGHT_DECAY", "0", "SOLVER.CLIP_GRAD_NORM", "2.6"]
    for scale in (1.0, 1024.0):  # with a scaler, the norm is that of the gradients without the scale
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        rule = SummedLosses(load_cfg(None, settings), weights, scaler)
        take_step(rule, {"loss": 3 * weights[0][0] + 4 * weights[0][1] + 12 * weights[1][0]})  # of norm 13
        torch.testing.assert_close(weights[0].detach(), torch.tensor([-0.6, -0.8]), rtol=1e-5, atol=0)
        torch.testing.assert_close(weights[1].detach(), torch.tensor([-2.4]), rtol=1e-5, atol=0)
        take_step(rule, {"loss": weights[0][0] * 2})  # a smaller norm stays
        torch.testing.assert_close(weights[0].detach(), torch.tensor([-2.6, -0.8]), rtol=1e-5, atol=0)
        for weight in weights:
            nn.init.zeros_(weight)


def test_parts_take_the_teachers_outputs_from_the_cache(image_folder: Path) -> None:
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    more = ["SOLVER.ACCUMULATE", "2", "TEACHER_CACHE", "memory", "DATASET.AUGMENT", "none"]
    runs = {}
    for choice in ("memory", "off"):
        more[3] = choice
        runs[choice] = build_trainer(settings(image_folder, *more, method="KD", name=choice, epochs=2))
        runs[choice].train()
    networks = runs["memory"].step.networks
    assert networks is not None
    cached = networks._teacher
    assert isinstance(cached, CachedTeacher)
    assert cached.table.filled() == 1
    calls: list[torch.Tensor] = []
    cached.teacher.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0]))
    runs["memory"].train_epoch(3)
    assert not calls
    losses = [[row["loss"] for row in rows(run)] for run in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
