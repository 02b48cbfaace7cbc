"""Training with images without labels: the losses by hand, exact resume, the teacher cache, and what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, List

import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mdistiller.dataset.folders.unlabeled import find_unlabeled
from mdistiller.dataset.loading.splits import FileSplit
from mdistiller.distillers import distiller_dict
from mdistiller.distillers.KD import KD, kd_loss
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.meter import EpochMeter
from mdistiller.engine.solver.soft_labels import with_soft_labels
from mdistiller.engine.validate import config_errors
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import make_image_folder
from tests.engine.run.test_exact_resume import STEPS, crashed_and_resumed
from tests.engine.test_trainer import settings
from tests.soak.kill_and_resume import differences

NEED_LABELS = {"NONE", "CRD", "DKD", "RLD"}


@pytest.fixture
def folder(image_folder: Path) -> Path:
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    make_image_folder(Path("other"), train=3, val=1)
    return image_folder


def built(folder: Path, *overrides: str, method: str = "KD", name: str = "run", epochs: int = 2) -> Any:
    own = ("DATASET.UNLABELED", "other", "DATASET.UNLABELED_RATIO", "0.7", "LOG.WANDB", "False")
    return build_trainer(settings(folder, *own, *overrides, method=method, name=name, epochs=epochs))


def test_targets_by_hand() -> None:
    batch = {"target": torch.tensor([1, -1, 0]), "label_weight": torch.tensor([1.5, 0.0, 1.5])}
    assert with_soft_labels(batch, 0.0, 2)["target"].tolist() == [[0, 1.5], [0, 0], [1.5, 0]]
    smoothed = with_soft_labels({**batch, "index": torch.zeros(3)}, 0.2, 2)
    torch.testing.assert_close(smoothed["target"], torch.tensor([[0.15, 1.35], [0, 0], [1.35, 0.15]]))
    assert set(smoothed) == {"target", "index"}
    mixed = with_soft_labels({**batch, "soft_target": torch.tensor([[0.25, 0.75], [1, 0], [0.5, 0.5]])}, 0.0, 2)
    torch.testing.assert_close(mixed["target"], torch.tensor([[0.375, 1.125], [0, 0], [0.75, 0.75]]))


def test_losses_by_hand(folder: Path) -> None:
    trainer = built(folder, "DATASET.IN_MEMORY", "yes")
    trainer.distiller.train()
    batch = next(iter(trainer.train_loader))
    assert len(batch["image"]) == 8 + 6
    with torch.no_grad():
        student = trainer.distiller.student(batch["image"])[0]
        teacher = trainer.distiller.teacher(batch["image"])[0]
    losses, logits = trainer.train_step(batch, 1, 0, 5)
    torch.testing.assert_close(logits, student)
    torch.testing.assert_close(losses["loss_ce"], 0.1 * F.cross_entropy(student[:8], batch["target"][:8]))
    torch.testing.assert_close(losses["loss_kd"], 0.9 * kd_loss(student, teacher, 4.0))


@pytest.mark.parametrize("method", sorted(set(distiller_dict) - NEED_LABELS - {"KD"}))
def test_each_method_takes_labels_of_labeled_images_only(folder: Path, method: str) -> None:
    assert distiller_dict[method].unlabeled
    trainer = built(folder, "DATASET.IN_MEMORY", "yes", "SFAKD.CE_WEIGHT", "1.0", method=method)
    trainer.distiller.train()
    batch = with_soft_labels(next(iter(trainer.train_loader)), 0.0, 3)
    name = "loss_probe" if method == "SIMKD" else "loss_ce"
    results = []
    for weights in (batch["target"], torch.zeros_like(batch["target"])):
        torch.manual_seed(0)
        logits, losses = trainer.distiller(**{**batch, "target": weights, "epoch": 1})
        results.append({key: value.detach() for key, value in losses.items()})
    labeled, none = results
    assert none[name] == 0 < labeled[name]
    if method == "SFAKD":
        expected = F.cross_entropy(logits[:8], batch["target"][:8].argmax(1))
        torch.testing.assert_close(labeled["loss_ce"], expected.detach())
    for key in set(labeled) - {"loss_ce", "loss_probe"}:
        assert torch.isfinite(none[key]) and labeled[key] != 0


@pytest.mark.parametrize("method", sorted(distiller_dict))
def test_methods_that_need_labels_are_refused(method: str) -> None:
    errors = config_errors(load_cfg(None, ["DISTILLER.TYPE", method, "DATASET.UNLABELED", "other"]))
    found = [line for line in errors if line.startswith("DATASET.UNLABELED other: DISTILLER.TYPE")]
    assert bool(found) == (method in NEED_LABELS)
    assert not found or f"{method} needs a label for each image" in found[0]


def test_a_step_of_its_own_must_say_so() -> None:
    class Other(KD):
        def forward_train(self, image, target, **kwargs):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    assert KD.unlabeled and not Other.unlabeled


def test_accuracy_counts_labeled_images_only() -> None:
    meter = EpochMeter(1)
    logits = torch.tensor([[2.0, 1], [2, 1], [2, 1], [1, 2]])
    batch = {"target": torch.tensor([0, 1, -1, -1]), "label_weight": torch.tensor([2.0, 2, 0, 0])}
    meter.add(1, {"loss_kd": torch.tensor(3.0)}, logits, batch)
    meter.sync()
    for one in (meter, EpochMeter(1)):
        one.load_state_dict(meter.state_dict(), torch.device("cpu"))
        assert one.averages()["train_top1"] == 50
        assert (one.images, one.averages()["loss_kd"]) == (4, 3)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("KD", ["TEACHER_CACHE", "memory"]),
        ("SFAKD", ["DATASET.IN_MEMORY", "no", "SOLVER.LABEL_SMOOTHING", "0.1", "DATASET.MIXUP", "0.5"]),
    ],
)
def test_an_interrupted_run_ends_like_an_undisturbed_one(folder: Path, method: str, more: List[str]) -> None:
    def make(name: str) -> Any:
        return built(folder, "SOLVER.CHECKPOINT_EVERY", "2 steps", *more, method=method, name=name)

    whole = make("whole")
    whole.train()
    resumed = crashed_and_resumed(STEPS + 4, make)  # saved after step 8, the third of the second epoch
    assert differences(whole.folder.path, resumed.folder.path) == []
    assert whole.progress.images == 2 * (36 + STEPS * 6)


@torch.no_grad()
def test_cached_vectors_are_the_teachers(folder: Path) -> None:
    trainer = built(folder, "TEACHER_CACHE", "memory", "DATASET.PADDING", "1")
    trainer.prepare()
    teacher = trainer.distiller.teacher
    for epoch in (1, 2):
        trainer.train_loader.set_epoch(epoch)
        with trainer.step.networks.in_place():
            for batch in trainer.batches():
                logits = trainer.distiller.teacher(batch["image"])[0]
                torch.testing.assert_close(logits, teacher(batch["image"])[0], atol=1e-5, rtol=1e-5)


def test_the_folder_is_recorded_for_any_directory(folder: Path) -> None:
    recorded = built(folder).cfg.DATASET.UNLABELED
    assert recorded == str(Path("other").absolute())


def test_the_progress_bar_counts_both_kinds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = []

    def bar(title: str, total: int, initial: int) -> Any:
        totals.append(total)
        return tqdm(total=total, disable=True)

    monkeypatch.setattr("mdistiller.engine.trainer.progress_bar", bar)
    trainer = built(folder, epochs=1)
    trainer.train()
    assert totals == [trainer.progress.images] == [36 + STEPS * 6]


def test_other_images_without_labels_are_refused_on_resume(folder: Path) -> None:
    built(folder, epochs=1).train()
    shutil.move("other", "moved")
    same = ("DATASET.UNLABELED", "moved")
    built(folder, *same, epochs=1).train(resume=True)
    next(Path("moved").rglob("0.png")).unlink()
    with pytest.raises(UserError, match="the number of images without labels was 12, now 11"):
        built(folder, *same, epochs=2).train(resume=True)
    with pytest.raises(UserError, match="DATASET.UNLABELED was '.*/other', now ''"):
        build_trainer(settings(folder, "DATASET.UNLABELED_RATIO", "0.7", method="KD")).train(resume=True)


def test_links_to_validation_images_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = sorted(folder.glob("val/*/*.png"))
    for number, file in enumerate(files[:3]):
        Path("other", f"link{number}.png").symlink_to(file.absolute())
    caplog.set_level(logging.INFO)
    found = find_unlabeled("other", FileSplit(list(map(str, files)), [0] * len(files)))
    assert len(found) == 12
    assert "3 images of DATASET.UNLABELED are validation images" in caplog.text
