"""Runs with re-estimated BatchNorm statistics: 36 images in batches of 8, of which 4 are full."""

from __future__ import annotations

import copy
import os
import signal
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

from mdistiller.engine import checkpoint
from mdistiller.engine.build import build_trainer
from mdistiller.engine.evaluation.eval_checkpoint import eval_checkpoint
from mdistiller.engine.run.signals import RunStopped
from mdistiller.engine.trainer import Trainer
from mdistiller.models import build_model
from tests.conftest import with_distiller
from tests.engine.evaluation.test_precise_bn import OwnTest
from tests.engine.test_trainer import rows, settings
from tests.soak.kill_and_resume import differences


@pytest.fixture
def make(image_folder: Any) -> Callable[..., Trainer]:
    """Return a function(name, method, batches) -> trainer."""
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")

    def built(name: str, method: str = "NONE", batches: int = 3) -> Trainer:
        compare = ("SOLVER.PRECISE_BN_COMPARE", str(batches > 0 and method != "SIMKD"))
        own = ("SOLVER.PRECISE_BN", str(batches), *compare, "LOG.WANDB", "False")
        trainer = build_trainer(settings(image_folder, *own, name=name, method="NONE" if method == "OWN" else method))
        if method == "OWN":
            torch.manual_seed(1)
            trainer = with_distiller(trainer, OwnTest(trainer.distiller.student))
        return trainer

    return built


def training_state(trainer: Trainer) -> dict[str, Any]:
    state = checkpoint.read_checkpoint(trainer.folder.latest)
    return {name: state[name] for name in ("distiller", "optimizer", "random", "epoch", "images")}


@pytest.mark.parametrize("method", ["NONE", "SFAKD", "SIMKD", "OWN"])
def test_training_is_that_of_a_run_without_it(make: Callable[..., Trainer], method: str) -> None:
    plain, precise = make("plain", method, 0), make("precise", method)
    compare = precise.cfg.SOLVER.PRECISE_BN_COMPARE
    for trainer in (plain, precise):
        trainer.train()
    one, other = training_state(plain), training_state(precise)
    assert one["distiller"].keys() == other["distiller"].keys()
    assert all(torch.equal(value, other["distiller"][name]) for name, value in one["distiller"].items())
    assert str(one["optimizer"]) == str(other["optimizer"])
    assert str(one["random"]) == str(other["random"])
    for row, with_it in zip(rows(plain), rows(precise)):
        assert row["loss"] == with_it["loss"]
        assert "running_top1" not in row
        if compare:
            assert [row[f"deployed_top{k}"] for k in (1, 5)] == [with_it[f"running_top{k}"] for k in (1, 5)]
        else:
            assert row.keys() == with_it.keys()
    assert ("running statistics" in precise.folder.worklog.read_text()) == compare

    files = [checkpoint.read_checkpoint(trainer.folder.student_latest) for trainer in (plain, precise)]
    parts = [{**file["model"], **(file["head"] or {"state": {}})["state"]} for file in files]
    for name, value in parts[0].items():
        same = torch.equal(value, parts[1][name])
        assert same != name.endswith(("running_mean", "running_var")), name
    assert not [name for name in files[1]["accuracy"] if name.startswith("running")]

    report = eval_checkpoint("resnet8", str(precise.folder.student_latest)).splitlines()
    deployed, recorded = (line.split()[1:5] for line in report if line.startswith(("deployed", "recorded")))
    assert deployed == recorded
    name = "bare" if method == "OWN" else "deployed"
    assert float(recorded[1]) == rows(precise)[-1][f"{name}_top1"]


def test_the_statistics_are_of_batches_of_their_own(make: Callable[..., Trainer]) -> None:
    trainer = make("run", "SFAKD")
    trainer.prepare()
    trainer.train_epoch(1)
    trainer.validate()
    expected = copy.deepcopy(trainer.distiller).train()
    norms = [module for module in expected.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    batches = list(trainer.train_loader.sample(3))
    assert [len(batch["image"]) for batch in batches] == [8, 8, 8]
    with torch.no_grad():
        for batch in batches:
            expected.forward_eval(batch["image"])
    names = [name for name, _ in expected.named_buffers() if name.endswith(("running_mean", "running_var"))]
    names = [name for name in names if not name.startswith("teacher.")]
    assert trainer.evaluation.statistics.keys() == set(names)
    assert len(names) == 2 * len(norms)
    for name, value in trainer.evaluation.statistics.items():
        torch.testing.assert_close(value, expected.get_buffer(name))


def test_all_modules_of_a_forward_test_count(make: Callable[..., Trainer]) -> None:
    trainer = make("run", "OWN")
    trainer.train()
    assert {"norm.running_mean", "norm.running_var", "student.bn1.running_var"} <= trainer.evaluation.statistics.keys()
    assert not [name for name in trainer.evaluation.statistics if name.startswith("spare")]


def test_a_second_evaluation_is_the_same(make: Callable[..., Trainer]) -> None:
    trainer = make("run", "SIMKD")
    trainer.train()
    before, accuracy = trainer.evaluation.statistics, dict(trainer.progress.last)
    assert trainer.validate() == accuracy
    assert before.keys() == trainer.evaluation.statistics.keys()
    assert all(torch.equal(value, trainer.evaluation.statistics[name]) for name, value in before.items())


@pytest.mark.parametrize(("method", "ending"), [("SFAKD", "signal"), ("NONE", "crash")])
def test_an_end_within_the_estimation(make: Callable[..., Trainer], method: str, ending: str) -> None:
    """After a signal the present state is saved; after a crash, that of the epoch before is on the disk."""
    whole = make("whole", method)
    whole.train()
    part = make("part", method)
    forward, calls = part.distiller.forward_eval, []

    def counted(image: Tensor) -> dict[str, Tensor]:
        calls.append(part.distiller.training)
        if calls.count(True) == 5:  # the second batch of the second epoch's three
            if ending == "crash":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(image)

    part.distiller.forward_eval = counted  # type: ignore[method-assign]
    with pytest.raises(RunStopped if ending == "signal" else KeyboardInterrupt):
        part.train()
    assert (calls[-1], calls.count(True)) == (True, 5)
    state = checkpoint.read_checkpoint(part.folder.latest)
    assert (state["epoch"], state["step"]) == (1, 5 if ending == "signal" else 0)
    resumed = make("part", method)
    torch.manual_seed(99)
    resumed.train(resume=True)
    assert differences(whole.folder.path, resumed.folder.path) == []


def test_more_batches_than_there_are(make: Callable[..., Trainer]) -> None:
    many, all_full = make("many", "NONE", 1000), make("all", "NONE", 4)
    for trainer in (many, all_full):
        trainer.train()
    assert all(
        torch.equal(value, all_full.evaluation.statistics[name]) for name, value in many.evaluation.statistics.items()
    )


class NoNorm(nn.Module):
    """A student without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.fc(image.mean((2, 3))), {}


def test_a_student_without_batch_norm_costs_nothing(make: Callable[..., Trainer]) -> None:
    trainer = make("run", "NONE", 3)
    trainer.distiller.student = NoNorm()
    trainer = with_distiller(trainer, trainer.distiller)
    trainer.train_loader.sample = lambda number: iter(lambda: 1 / 0, None)  # type: ignore[assignment, return-value]
    trainer.train()
    assert trainer.evaluation.statistics == {}
    assert "running_top1" not in rows(trainer)[-1]
    assert "running statistics" not in trainer.folder.worklog.read_text()
