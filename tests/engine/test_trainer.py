"""The training loop on a handful of images: files, numbers, resume, and what is refused."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers import Distiller
from mdistiller.engine import checkpoint
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.checkpoint.foreign_weights import weights_of
from mdistiller.engine.log.logger import MACHINE_FIELDS
from mdistiller.engine.log.run_text import size_lines
from mdistiller.engine.meter import NonFiniteLoss
from mdistiller.engine.run.folder import RunFolder
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import with_distiller


def settings(root, *overrides, name="run", method="NONE", epochs=2):
    return load_cfg(
        None,
        [
            *("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(root), "DATASET.INPUT_SIZE", "16"),
            *("DATASET.TEST.BATCH_SIZE", "4", "DATASET.NUM_WORKERS", "0"),
            *("DISTILLER.TYPE", method, "DISTILLER.STUDENT", "resnet8", "DISTILLER.TEACHER", "resnet14"),
            *("DISTILLER.TEACHER_WEIGHTS", "teacher.pth", "EXPERIMENT.NAME", name),
            *("SOLVER.EPOCHS", str(epochs), "SOLVER.BATCH_SIZE", "8", "SOLVER.LR", "0.02", "SOLVER.AMP", "off"),
            *("SOLVER.LR_DECAY_STAGES", "[]"),
            *overrides,
        ],
    )


@pytest.fixture
def teacher(image_folder):
    """`teacher.pth`: a resnet14 that knows the images."""
    cfg = settings(image_folder, "DISTILLER.STUDENT", "resnet14", "SOLVER.SCHEDULE", "linear", name="teacher", epochs=8)
    trainer = build_trainer(cfg)
    trainer.train()
    trainer.folder.student_latest.rename("teacher.pth")
    return image_folder


def rows(trainer):
    return [json.loads(row) for row in trainer.folder.metrics.read_text().splitlines()]


def test_a_run_leaves_its_files(teacher):
    trainer = build_trainer(settings(teacher, method="SFAKD"))
    summary = trainer.train()
    names = {path.name for path in trainer.folder.path.iterdir()}
    assert names >= {"student_best.pth", "student_latest.pth", "best.pth", "latest.pth", "worklog.txt", "metrics.jsonl"}
    assert names >= {"config.yaml", "summary.json", "train.events"}
    assert not [name for name in names if "partial" in name]
    assert list((trainer.folder.path / "train.events").iterdir())
    assert json.loads(trainer.folder.summary.read_text()) == json.loads(json.dumps(summary))
    assert list(trainer.train_loader.info.mean) == load_cfg(str(trainer.folder.config)).DATASET.MEAN
    first, second = rows(trainer)
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert second["loss"] == pytest.approx(second["loss_feat"] + second["loss_probe"])
    assert {"deployed_top1", "deployed_top5", "probe_top1", "train_top1", "images_per_second"} <= set(second)
    student = checkpoint.read_checkpoint(trainer.folder.student_latest)
    assert student["accuracy"] == {k: second[k] for k in student["accuracy"]} == summary["last"]
    log = trainer.folder.worklog.read_text()
    assert "epoch   2/2" in log
    assert "done: last top-1" in log


def test_the_teacher_is_in_no_student_file(teacher):
    trainer = build_trainer(settings(teacher, method="SFAKD"))
    trainer.train()
    for path in (trainer.folder.student_best, trainer.folder.latest):
        content = checkpoint.read_checkpoint(path)
        keys = [*content.get("distiller", ()), *content.get("model", ()), *(content.get("head") or {}).get("state", ())]
        assert keys
        assert not [key for key in keys if key.startswith("teacher")]


def test_a_resumed_run_ends_like_an_uninterrupted_one(teacher):
    def built(name):
        return build_trainer(settings(teacher, name=name, method="SFAKD", epochs=3))

    whole = built("whole")
    whole.train()
    # a run of 3 epochs that is stopped in the second
    part = built("part")
    step, calls = part.train_step, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > len(part.train_loader) + 1:
            raise KeyboardInterrupt
        return step(*args)

    part.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        part.train()
    resumed = built("part")
    resumed.train(resume=True)
    for key, value in checkpoint.read_checkpoint(whole.folder.latest)["distiller"].items():
        assert torch.equal(value, checkpoint.read_checkpoint(resumed.folder.latest)["distiller"][key]), key
    learned = [
        [{k: v for k, v in row.items() if k not in MACHINE_FIELDS} for row in rows(run)] for run in (resumed, whole)
    ]
    assert learned[0] == learned[1]
    assert len(rows(resumed)) == 3
    assert resumed.progress.best == whole.progress.best


def test_students_of_one_seed_start_alike_whatever_the_method(teacher):
    students = [build_trainer(settings(teacher, method=m)).distiller.student for m in ("NONE", "KD", "SFAKD")]
    states = [student.state_dict() for student in students]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])
        assert torch.equal(value, states[2][key])
    other = build_trainer(settings(teacher, "EXPERIMENT.SEED", "1")).distiller.student
    assert not torch.equal(other.conv1.weight, students[0].conv1.weight)


def test_the_loop_learns(teacher):
    summary = build_trainer(settings(teacher, "SOLVER.SCHEDULE", "linear", method="KD", epochs=10)).train()
    assert summary["best"]["deployed_top1"] >= 80  # three colors; chance is 33


GOLDEN = {"NONE": [0.93233, 0.79117], "KD": [0.16937, 0.15580], "SFAKD": [8.933, 8.772]}


@pytest.mark.parametrize("method", GOLDEN)
def test_golden_losses(image_folder, method):
    """The losses of two epochs, as they were when the loop was written: guards data, loop and losses in refactors."""
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    trainer = build_trainer(settings(image_folder, method=method))
    trainer.train()
    # wide enough for other processors' rounding, which training amplifies
    assert [row["loss"] for row in rows(trainer)] == pytest.approx(GOLDEN[method], rel=1e-2)


def test_the_loop_is_the_textbooks(teacher):
    trainer = build_trainer(settings(teacher, epochs=1))
    trainer.train()
    reference = build_trainer(settings(teacher, name="again", epochs=1))
    reference.distiller.train()
    reference.train_loader.set_epoch(1)
    total = 0.0
    optimizer = torch.optim.SGD(reference.distiller.student.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    for batch in reference.train_loader:  # the textbook loop
        logits = reference.distiller.student(batch["image"])[0]
        loss = torch.nn.functional.cross_entropy(logits, batch["target"])
        total += loss.item() * len(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert rows(trainer)[0]["loss"] == pytest.approx(total / reference.train_loader.num_images, rel=1e-5)


class Exploding(Distiller):
    """Gives a NaN from the second step of the second epoch on."""

    needs_teacher = False
    steps = 0

    def __init__(self, student, teacher, cfg):
        super().__init__(student)

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        self.steps += kwargs["epoch"] == 2
        scale = float("nan") if self.steps > 1 else 1.0
        return logits, {"loss_odd": logits.square().mean() * scale, "loss_even": logits.square().mean() * 0}


def exploding(root):
    trainer = build_trainer(settings(root, "LOG.WANDB", "False"))
    return with_distiller(trainer, Exploding(trainer.distiller.student, None, None))


def test_reduced_logits_without_a_cache_are_refused_before_the_folder_is_touched(teacher):
    reduced = ["DATASET.AUGMENT", "resized_crop", "TEACHER_CACHE", "memory", "TEACHER_TOP_LOGITS", "1"]
    trainer = build_trainer(settings(teacher, *reduced, name="reduced", method="KD"))
    with pytest.raises(
        UserError, match=r"TEACHER_TOP_LOGITS is 1, .* no teacher cache \(.* countless forms of an image"
    ):
        trainer.train()
    assert not trainer.folder.path.exists()


def test_an_evaluation_that_draws_random_numbers_changes_no_training(image_folder):
    trainer = build_trainer(settings(image_folder, method="NONE"))
    student, drawn = trainer.distiller.student, []
    student.register_forward_pre_hook(lambda module, args: drawn.append(torch.rand(()) + random.random()))
    before = torch.get_rng_state(), random.getstate()
    trainer.validate()
    assert drawn
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_state(image_folder):
    trainer = exploding(image_folder)
    line = (
        r"epoch 2, step 2 \(loss_odd nan, loss_even 0\); .*; the training state was saved to output/run/nonfinite\.pth$"
    )
    with pytest.raises(NonFiniteLoss, match=line):
        trainer.train()
    assert "stopped: NonFiniteLoss the loss is not finite at epoch 2" in trainer.folder.worklog.read_text()
    assert checkpoint.read_checkpoint(trainer.folder.latest)["epoch"] == 1

    kept = checkpoint.read_checkpoint(trainer.folder.nonfinite)
    found = kept["nonfinite"]
    assert (found["epoch"], found["step"], found["saved_after_step"]) == (2, 2, 5)
    trainer.train_loader.set_epoch(2)
    batch = list(trainer.train_loader)[1]
    for key in ("index", "target", "variant"):
        assert torch.equal(found[key], batch[key])
    assert found["losses"]["loss_even"] == 0
    assert found["history"][1]["loss_odd"] == found["history"][1]["loss_odd"]
    assert "student.conv1.weight" in found["tensors"]
    assert kept["distiller"]["student.conv1.weight"].isnan().all()
    assert kept["config"]["SOLVER"]["LR"] == 0.02
    assert kept["optimizer"]["state"]
    with pytest.raises(UserError, match="is a training state"):
        weights_of(kept, "nonfinite.pth")
    # the run's own file: replaced with the run, and no obstacle to going on
    build_trainer(settings(image_folder, epochs=2)).train(resume=True)
    build_trainer(settings(image_folder, epochs=1)).train(overwrite=True)
    assert not trainer.folder.nonfinite.exists()


def test_gradients_that_are_not_finite_in_float16_stop_the_run(image_folder, monkeypatch):
    trainer = build_trainer(settings(image_folder, "LOG.WANDB", "False"))
    monkeypatch.setattr(trainer.step.scaler, "is_enabled", lambda: trainer.progress.epoch == 1)
    monkeypatch.setattr(trainer.step.scaler, "get_scale", lambda: 0.5)
    with pytest.raises(
        NonFiniteLoss, match=r"not finite in float16 at epoch 2, step 5, .* saved to output/run/nonfinite"
    ):
        trainer.train()
    kept = checkpoint.read_checkpoint(trainer.folder.nonfinite)["nonfinite"]
    assert kept == {"epoch": 2, "step": 5, "tensors": []}


def test_the_line_on_the_loss_comes_also_where_nothing_can_be_written(image_folder, monkeypatch):
    trainer = exploding(image_folder)
    save = checkpoint.save

    def full_disk(content, path, previous=None):
        if "nonfinite" in content:
            raise OSError(28, "No space left on device")
        save(content, path, previous)

    monkeypatch.setattr(checkpoint, "save", full_disk)
    with pytest.raises(NonFiniteLoss, match=r"epoch 2, step 2 .*; its state cannot be written to .* \(.*No space left"):
        trainer.train()
    assert checkpoint.read_checkpoint(trainer.folder.latest)["epoch"] == 1


def test_nothing_is_overwritten_unasked(image_folder):
    first = build_trainer(settings(image_folder))
    first.train()
    before = first.folder.student_best.read_bytes()
    with pytest.raises(UserError, match="already holds a run; continue it with --resume, replace it with --overwrite"):
        build_trainer(settings(image_folder)).train()
    with pytest.raises(UserError, match="contradict"):
        build_trainer(settings(image_folder)).train(resume=True, overwrite=True)
    with pytest.raises(UserError, match="no run to continue"):
        build_trainer(settings(image_folder, name="other")).train(resume=True)
    assert first.folder.student_best.read_bytes() == before
    build_trainer(settings(image_folder, "EXPERIMENT.SEED", "5")).train(overwrite=True)
    assert first.folder.student_best.read_bytes() != before


def test_a_folder_of_other_things_is_never_removed(image_folder, tmp_path):
    build_trainer(settings(image_folder, epochs=1)).train()
    inner = build_trainer(settings(image_folder, name="run/inner", epochs=1))
    inner.train()
    (tmp_path / "output/run/thesis.tex").write_text("x")
    build_trainer(settings(image_folder, epochs=1)).train(overwrite=True)
    assert (tmp_path / "output/run/thesis.tex").exists()
    assert inner.folder.student_best.exists()


def test_files_that_only_look_like_a_run_are_never_removed(image_folder, tmp_path):
    trainer = build_trainer(settings(image_folder))
    trainer.folder.path.mkdir(parents=True)
    trainer.folder.config.write_text("mine: 1")
    with pytest.raises(UserError, match="holds config.yaml, but no run wrote them"):
        trainer.train(overwrite=True)
    assert trainer.folder.config.read_text() == "mine: 1"


def test_resume_with_another_model_is_refused(image_folder):
    build_trainer(settings(image_folder, epochs=1)).train()
    other = build_trainer(settings(image_folder, "DISTILLER.STUDENT", "resnet14"))
    with pytest.raises(UserError, match="DISTILLER.STUDENT was 'resnet8', now 'resnet14'"):
        other.train(resume=True)


def test_resume_with_other_settings_is_refused_but_more_epochs_are_fine(image_folder):
    build_trainer(settings(image_folder, epochs=1)).train()
    changed = settings(image_folder, "SOLVER.WEIGHT_DECAY", "0.3", "EXPERIMENT.SEED", "4")
    with pytest.raises(UserError, match="SEED was 0, now 4; SOLVER.WEIGHT_DECAY was 0.0001, now 0.3"):
        build_trainer(changed).train(resume=True)
    summary = build_trainer(settings(image_folder, "LOG.TENSORBOARD_FREQ", "7", epochs=2)).train(resume=True)
    assert summary["epochs"] == 2


def test_resume_before_the_first_epoch_was_finished(image_folder):
    trainer = build_trainer(settings(image_folder))
    trainer.train_epoch = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    resumed = build_trainer(settings(image_folder))
    assert resumed.train(resume=True)["epochs"] == 2
    note = f"note: nothing was saved in {trainer.folder.path} yet; starting from the beginning"
    assert note in trainer.folder.worklog.read_text()
    assert [row["epoch"] for row in rows(resumed)] == [1, 2]


def test_resume_without_a_state_removes_no_student(image_folder):
    trainer = build_trainer(settings(image_folder, epochs=1))
    trainer.train()
    trainer.folder.latest.unlink()
    with pytest.raises(UserError, match="no run to continue, .* does not exist; start again with --overwrite"):
        build_trainer(settings(image_folder)).train(resume=True)
    assert trainer.folder.student_best.is_file()


def test_resume_removes_nothing_of_a_run_without_checkpoints(image_folder):
    """Checkpoints may be deleted to save space; what is left of the run is kept."""
    trainer = build_trainer(settings(image_folder, epochs=1))
    trainer.train()
    for path in trainer.folder.path.glob("*.pth"):
        path.unlink()
    with pytest.raises(UserError, match="no run to continue, .* does not exist; start again with --overwrite"):
        build_trainer(settings(image_folder)).train(resume=True)
    trainer.folder.summary.unlink()
    with trainer.folder.metrics.open("a") as log:
        log.write('{"epoch": 2}\n')
    with pytest.raises(UserError, match="no run to continue"):
        build_trainer(settings(image_folder)).train(resume=True)
    assert len(rows(trainer)) == 2


def test_a_row_cut_off_in_the_middle_does_not_stop_a_resume(image_folder):
    first = build_trainer(settings(image_folder, epochs=1))
    first.train()
    with first.folder.metrics.open("a") as log:
        log.write('{"epoch": 2, "lo')
    resumed = build_trainer(settings(image_folder, epochs=2))
    resumed.train(resume=True)
    assert [row["epoch"] for row in rows(resumed)] == [1, 2]


class OwnTest(Distiller):
    """As a fork's SimKD: tests by more than the student, which it does not say in `head`."""

    needs_teacher = False

    def __init__(self, student):
        super().__init__(student)
        self.scale = torch.nn.Parameter(torch.tensor(-1.0))

    def forward_train(self, image, target, **kwargs):
        logits = self.student(image)[0]
        return logits, {"loss_ce": torch.nn.functional.cross_entropy(logits, target)}

    def forward_test(self, image):
        return self.student(image)[0] * self.scale


def test_a_forward_test_of_its_own_is_told_from_the_student_that_is_saved(image_folder, capsys):
    trainer = build_trainer(settings(image_folder))
    trainer = with_distiller(trainer, OwnTest(trainer.distiller.student))
    trainer.train()
    assert "note: NONE overrides forward_test" in capsys.readouterr().out
    saved = checkpoint.read_checkpoint(trainer.folder.student_latest)["accuracy"]
    last = rows(trainer)[-1]
    assert saved == {f"deployed_top{k}": last[f"bare_top{k}"] for k in (1, 5)}
    assert last["bare_top1"] != last["deployed_top1"]


def test_step_scalars_reach_tensorboard(image_folder):
    trainer = build_trainer(settings(image_folder, "LOG.TENSORBOARD_FREQ", "2", epochs=1))
    trainer.train()
    (events,) = (trainer.folder.path / "train.events").iterdir()
    content = events.read_bytes()
    assert b"step/loss_ce" in content
    assert b"epoch/deployed_top1" in content


def test_kept_checkpoints(image_folder):
    trainer = build_trainer(settings(image_folder, "LOG.SAVE_CHECKPOINT_FREQ", "2", epochs=3))
    trainer.train()
    assert sorted(p.name for p in trainer.folder.path.glob("epoch_*")) == ["epoch_2.pth"]
    assert checkpoint.read_checkpoint(trainer.folder.kept(2))["epoch"] == 2


def test_fewer_evaluations_do_not_change_training(image_folder, monkeypatch):
    every, second = (
        build_trainer(settings(image_folder, "SOLVER.EVAL_EVERY", every_n, name=f"every_{every_n}", epochs=5))
        for every_n in ("1", "2")
    )
    seen, save = [], RunFolder.save_epoch

    def save_epoch(folder, *args, **flags):
        save(folder, *args, **flags)
        student = folder.student_latest
        epoch = checkpoint.read_checkpoint(student)["epoch"] if student.is_file() else None
        seen.append((checkpoint.read_checkpoint(folder.latest)["epoch"], epoch))

    summary = every.train()
    monkeypatch.setattr(RunFolder, "save_epoch", save_epoch)
    summaries = summary, second.train()
    assert seen == [(1, None), (2, 2), (3, 2), (4, 4), (5, 5)]
    assert summaries[0]["last"] == summaries[1]["last"]
    for key, value in every.distiller.state_dict().items():
        assert torch.equal(value, second.distiller.state_dict()[key]), key
    accuracies = {row["epoch"]: row["deployed_top1"] for row in rows(every)}
    assert {row["epoch"]: row["deployed_top1"] for row in rows(second) if "deployed_top1" in row} == {
        epoch: accuracies[epoch] for epoch in (2, 4, 5)
    }
    best = max((2, 4, 5), key=lambda epoch: accuracies[epoch])
    assert summaries[1]["best"]["epoch"] == best
    assert checkpoint.read_checkpoint(second.folder.student_best)["epoch"] == best
    assert second.folder.worklog.read_text().count("val top-1") == 3


@pytest.mark.parametrize(("stopped_after", "evaluated"), [(1, 0), (3, 2)])
def test_a_run_cut_to_an_epoch_without_an_evaluation(image_folder, stopped_after, evaluated):
    part, whole = (settings(image_folder, "SOLVER.EVAL_EVERY", "2", name=name, epochs=6) for name in ("part", "whole"))
    stopped = build_trainer(part)
    stopped.train_epoch = stop_after(stopped, stopped_after)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert checkpoint.read_checkpoint(stopped.folder.latest)["evaluated"] == evaluated
    whole.SOLVER.EPOCHS = part.SOLVER.EPOCHS = stopped_after
    resumed = build_trainer(part)
    assert resumed.train(resume=True)["last"] == build_trainer(whole).train()["last"]
    assert checkpoint.read_checkpoint(resumed.folder.student_latest)["epoch"] == stopped_after


def stop_after(trainer, epochs):
    train_epoch = trainer.train_epoch

    def interrupted(epoch):
        if epoch > epochs:
            raise KeyboardInterrupt
        return train_epoch(epoch)

    return interrupted


def test_opening_lines_give_the_size(image_folder):
    for path in sorted((image_folder / "train/class_1").iterdir())[:2]:
        path.unlink()
    trainer = build_trainer(settings(image_folder, epochs=3))
    trainer.train()
    log = trainer.folder.worklog.read_text()
    assert "10 to 12 images per class, 5 steps per epoch, 3 epochs × 34 images = 102 images shown" in log
    note = "note: 10 images in a class and 15 steps in all are few; docs/recipe.md lists starting points by the size"
    assert note in log


def test_a_set_of_a_common_size_needs_no_note():
    info = SimpleNamespace(num_classes=2)
    sized = type("Sized", (SimpleNamespace,), {"__len__": lambda self: 32})
    loader = sized(info=info, targets=torch.arange(2000) % 2, num_images=2000, unlabeled=None)
    lines = list(size_lines(load_cfg(None, ["SOLVER.EPOCHS", "100"]), loader))
    assert lines == ["1000 images per class, 32 steps per epoch, 100 epochs × 2,000 images = 200,000 images shown"]
