"""The average of the student's weights: its values, and the runs that evaluate and deploy it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdistiller.distillers import Distiller
from mdistiller.engine import checkpoint
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.evaluation.eval_checkpoint import eval_checkpoint
from mdistiller.engine.solver.ema import StudentAverage, decay_of
from mdistiller.engine.validate import check_settings
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.engine.test_trainer import rows, settings


def test_the_decay_by_hand() -> None:
    assert [decay_of(step, 0.5) for step in (1, 3, 9, 100)] == [0.1, 0.25, 0.5, 0.5]
    assert decay_of(991, 0.999) == 0.991


def test_the_average_by_hand() -> None:
    student = nn.BatchNorm1d(1)
    average = StudentAverage(Distiller(student), 0.2)
    for value, count in ((8.0, 3), (18.0, 5), (0.0, 7)):
        nn.init.constant_(student.weight, value)
        nn.init.constant_(student.running_mean, 10 * value)
        student.num_batches_tracked.fill_(count)
        average.update()
    found = average.averaged.backbone
    # the first step is copied; then the decays are 1/10 and 2/11: (8/10 + 18·9/10) = 17, 17·2/11
    torch.testing.assert_close(found.weight.detach(), torch.tensor([17 * 2 / 11]))
    torch.testing.assert_close(found.running_mean, torch.tensor([170 * 2 / 11]))
    assert int(found.num_batches_tracked) == 7
    assert float(student.weight.detach()) == 0.0


def test_in_place_of_the_student() -> None:
    distiller = Distiller(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    student = distiller.student
    average = StudentAverage(distiller, 0.9)
    with pytest.raises(KeyError), average.in_place():
        assert distiller.student is average.averaged.backbone
        distiller.eval()
        raise KeyError
    assert distiller.student is student
    assert all(module.training for module in average.averaged.modules())
    assert [name for name, _ in distiller.named_children()] == ["student"]


@pytest.fixture
def teacher() -> None:
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")


@pytest.mark.parametrize("method", ["KD", "SFAKD"])
def test_the_average_is_deployed_and_training_does_not_change(image_folder, teacher, method) -> None:  # type: ignore[no-untyped-def]
    plain = build_trainer(settings(image_folder, method=method, name="plain"))
    plain.train()
    run = build_trainer(settings(image_folder, "SOLVER.EMA", "0.8", method=method))
    run.train()
    for key, value in plain.distiller.state_dict().items():
        assert torch.equal(value, run.distiller.state_dict()[key]), key
    last = rows(run)[-1]
    assert {key: last[key] for key in ("loss", "plain_top1", "plain_top5")} == {
        "loss": rows(plain)[-1]["loss"],
        **{f"plain_top{k}": rows(plain)[-1][f"deployed_top{k}"] for k in (1, 5)},
    }
    assert "without EMA" in run.folder.worklog.read_text()

    assert run.step.average is not None
    averages = run.step.average.averaged.backbone.state_dict()
    student = checkpoint.read_checkpoint(run.folder.student_latest)
    assert all(torch.equal(student["model"][key], value) for key, value in averages.items())
    assert not torch.equal(student["model"]["conv1.weight"], run.distiller.student.conv1.weight)
    assert student["accuracy"] == {k: v for k, v in run.progress.last.items() if not k.startswith("plain_")}
    report = eval_checkpoint("resnet8", str(run.folder.student_latest)).splitlines()
    deployed, recorded = (line.split()[1:5] for line in report if line.startswith(("deployed", "recorded")))
    assert deployed == recorded


def test_precise_statistics_are_those_of_the_average(image_folder) -> None:  # type: ignore[no-untyped-def]
    run = build_trainer(settings(image_folder, "SOLVER.EMA", "0.8", "SOLVER.PRECISE_BN", "2", epochs=1))
    run.train()
    assert run.step.average is not None
    own = run.step.average.averaged.backbone
    saved = checkpoint.read_checkpoint(run.folder.student_latest)["model"]
    assert torch.equal(saved["conv1.weight"], own.conv1.weight)
    assert not torch.equal(saved["bn1.running_mean"], own.bn1.running_mean)
    own.train()
    total = torch.zeros(16)
    with torch.no_grad():
        batches = list(run.train_loader.sample(2))
        for batch in batches:
            total += own.conv1(batch["image"]).mean((0, 2, 3))
    torch.testing.assert_close(saved["bn1.running_mean"], total / len(batches), rtol=1e-4, atol=1e-5)


def test_the_average_continues_where_it_was_saved() -> None:
    student = nn.BatchNorm1d(1)
    whole, continued = (StudentAverage(Distiller(student), 0.5) for _ in range(2))
    for step, value in enumerate((8.0, 18.0, 4.0, 5.0)):
        if step == 2:
            continued.load_state_dict(whole.state_dict())
        nn.init.constant_(student.weight, value)
        for average in (whole, continued) if step >= 2 else (whole,):
            average.update()
    assert float(whole.averaged.backbone.weight.detach()) != 5.0
    assert torch.equal(whole.averaged.backbone.weight, continued.averaged.backbone.weight)


def test_an_average_of_another_student_is_refused() -> None:
    average = StudentAverage(Distiller(nn.Linear(2, 2)), 0.9)
    for state in ({}, StudentAverage(Distiller(nn.Linear(2, 3)), 0.9).state_dict(), {"averages": [], "statistics": []}):
        with pytest.raises(ValueError, match="its average is of another student"):
            average.load_state_dict(state)


@pytest.mark.parametrize("value", ["-0.1", "1", ".nan"])
def test_impossible_decays(value: str) -> None:
    with pytest.raises(UserError, match="^SOLVER.EMA is .*; expected a decay from 0"):
        check_settings(load_cfg(None, ["SOLVER.EMA", value]))


def test_a_student_that_cannot_be_copied() -> None:
    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("cannot copy")

    with pytest.raises(UserError, match=r"SOLVER.EMA needs a copy of the student, which fails \(cannot copy\)"):
        StudentAverage(Distiller(Uncopied(2, 2)), 0.9)
