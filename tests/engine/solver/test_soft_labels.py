"""Labels as probabilities: smoothed and mixed ones, and the methods that take them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mdistiller.distillers import Distiller, distiller_dict
from mdistiller.distillers.KD import KD, kd_loss
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.solver.soft_labels import soft_label_errors, with_soft_labels
from mdistiller.engine.validate import config_errors, setting_errors
from mdistiller.models import build_model
from tests.engine.test_trainer import rows, settings

HARD = {"CRD", "DKD", "RLD"}  # read labels themselves


def test_smoothed_labels_by_hand() -> None:
    batch = {"target": torch.tensor([2, 0]), "index": torch.tensor([5, 6])}
    assert with_soft_labels(batch, 0.0, 4) is batch
    smoothed = with_soft_labels(batch, 0.2, 4)
    torch.testing.assert_close(smoothed["target"], torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert smoothed["index"].tolist() == [5, 6]
    logits = torch.randn(2, 4)
    expected = F.cross_entropy(logits, batch["target"], label_smoothing=0.2)
    torch.testing.assert_close(F.cross_entropy(logits, smoothed["target"]), expected)


def test_mixed_labels_by_hand() -> None:
    batch = {"target": torch.tensor([1]), "soft_target": torch.tensor([[0.25, 0.75]])}
    assert with_soft_labels(batch, 0.0, 2)["target"].tolist() == [[0.25, 0.75]]
    torch.testing.assert_close(with_soft_labels(batch, 0.5, 2)["target"], torch.tensor([[0.375, 0.625]]))
    assert "soft_target" not in with_soft_labels(batch, 0.5, 2)


@pytest.mark.parametrize("key", ["DATASET.MIXUP", "DATASET.CUTMIX", "SOLVER.LABEL_SMOOTHING"])
def test_methods_that_need_labels_are_refused(key: str) -> None:
    for name, distiller in distiller_dict.items():
        cfg = load_cfg(None, ["DISTILLER.TYPE", name, key, "0.2"])
        errors = list(soft_label_errors(cfg, distiller))
        assert (len(errors) == 1) == (name in HARD), name
        if errors:
            assert errors[0].startswith(f"{key} 0.2: labels are then probabilities, but DISTILLER.TYPE {name} is not")
            assert errors[0] in config_errors(cfg)
            assert "KD" in errors[0]
        assert not list(soft_label_errors(load_cfg(None, ["DISTILLER.TYPE", name]), distiller))


def test_a_step_of_its_own_must_say_so() -> None:
    class Other(KD):
        def forward_train(self, image, target, **kwargs):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    class Declared(Other):
        soft_labels = True

    class Same(KD):
        pass

    classes = (Other, Declared, Same, Distiller)
    assert [cls.soft_labels for cls in classes] == [False, True, True, False]


@pytest.fixture
def folder(image_folder):  # type: ignore[no-untyped-def]
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    return image_folder


SOFT = ["DATASET.MIXUP", "0.3", "SOLVER.LABEL_SMOOTHING", "0.1"]


@pytest.mark.parametrize("method", sorted(set(distiller_dict) - HARD))
def test_a_step_of_each_method_that_takes_them(folder, method: str) -> None:  # type: ignore[no-untyped-def]
    trainer = build_trainer(settings(folder, *SOFT, "DATASET.IN_MEMORY", "yes", method=method))
    trainer.distiller.train()
    trainer.train_loader.set_epoch(1)
    batch = next(iter(trainer.train_loader))
    losses, logits = trainer.train_step(trainer.in_memory_format(batch), 1, 0, 5)
    assert logits.shape == (8, 3)
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    names = {"loss_ce", "loss_probe"} & set(losses)
    assert names, "cross-entropy is what soft labels are for"


def test_the_loss_is_that_of_mixed_labels_and_the_teacher_sees_the_mixed_image(folder) -> None:  # type: ignore[no-untyped-def]
    trainer = build_trainer(settings(folder, *SOFT, "DATASET.IN_MEMORY", "yes", method="KD"))
    trainer.distiller.train()
    batch = next(iter(trainer.train_loader))
    seen = []
    trainer.distiller.teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    losses, logits = trainer.train_step(batch, 1, 0, 5)
    expected = F.cross_entropy(logits, batch["soft_target"] * 0.9 + 0.1 / 3)
    torch.testing.assert_close(losses["loss_ce"], 0.1 * expected)
    assert len(seen) == 1
    assert seen[0] is batch["image"]


def test_mixed_images_are_not_cached(folder) -> None:  # type: ignore[no-untyped-def]
    trainer = build_trainer(settings(folder, *SOFT, "TEACHER_CACHE", "memory", method="KD", epochs=1))
    trainer.train()
    line = "teacher cache: none, DATASET.MIXUP 0.3 makes countless forms of an image"
    assert line in trainer.folder.worklog.read_text()
    assert 0 < rows(trainer)[0]["train_top1"] <= 100


def test_smoothing_keeps_the_cache(folder) -> None:  # type: ignore[no-untyped-def]
    smoothed = ["SOLVER.LABEL_SMOOTHING", "0.1"]
    runs = [
        build_trainer(settings(folder, *smoothed, "TEACHER_CACHE", choice, method="KD", name=choice, epochs=1))
        for choice in ("memory", "off")
    ]
    for run in runs:
        run.train()
    assert "teacher cache: 36 images" in runs[0].folder.worklog.read_text()
    assert rows(runs[0])[0]["loss"] == pytest.approx(rows(runs[1])[0]["loss"], rel=1e-4)


def test_kd_alone_needs_no_labels(folder) -> None:  # type: ignore[no-untyped-def]
    """The "patient teacher": without cross-entropy, the step is that of the divergence, whatever the labels."""
    states = []
    for shift in (0, 1):
        trainer = build_trainer(settings(folder, "KD.LOSS.CE_WEIGHT", "0", "KD.LOSS.KD_WEIGHT", "1", method="KD"))
        trainer.distiller.train()
        batch = trainer.in_memory_format(next(iter(trainer.train_loader)))
        losses, _ = trainer.train_step({**batch, "target": (batch["target"] + shift) % 3}, 1, 0, 5)
        assert float(losses["loss_ce"]) == 0
        states.append(trainer.distiller.student.state_dict())
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())

    reference = build_trainer(settings(folder, method="KD")).distiller.train()
    optimizer = torch.optim.SGD(reference.student.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    with torch.no_grad():
        logits_teacher = reference.teacher(batch["image"])[0]
    kd_loss(reference.student(batch["image"])[0], logits_teacher, 4.0).backward()
    optimizer.step()
    for key, value in reference.student.state_dict().items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["SOLVER.LABEL_SMOOTHING", "1"], "SOLVER.LABEL_SMOOTHING is 1.0; expected a number from 0"),
        (["SOLVER.LABEL_SMOOTHING", "-0.1"], "SOLVER.LABEL_SMOOTHING is -0.1; expected"),
        (["DATASET.MIXUP", "-1"], "DATASET.MIXUP is -1.0; expected 0 or more"),
        (["DATASET.CUTMIX", ".nan"], "DATASET.CUTMIX is nan; expected 0 or more"),
        (["DATASET.POLICY", "randaugment"], "DATASET.POLICY is 'randaugment'; did you mean rand_augment"),
        (["DATASET.POLICY_OPS", "0"], "DATASET.POLICY_OPS is 0; expected a whole number from 1 to 16"),
        (["DATASET.POLICY_MAGNITUDE", "31"], "DATASET.POLICY_MAGNITUDE is 31; expected a whole number from 0 to 30"),
        (["DATASET.ERASING", "1.5"], "DATASET.ERASING is 1.5; expected a probability"),
        (
            ["DATASET.IN_MEMORY", "yes", "DATASET.POLICY", "trivial_augment"],
            "DATASET.IN_MEMORY yes cannot be combined with DATASET.POLICY trivial_augment, for which worker processes",
        ),
        (["DATASET.IN_MEMORY", "yes", "DATASET.ERASING", "0.25"], "DATASET.IN_MEMORY yes cannot be combined with"),
    ],
)
def test_impossible_values(overrides: list[str], line: str) -> None:
    (error,) = setting_errors(load_cfg(None, overrides))
    assert error.startswith(line)
    assert "\n" not in error
