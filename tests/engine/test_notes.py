"""What a run warns of before its first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdistiller.distillers import Distiller
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.notes import returns_probabilities, unread_settings, untrained
from mdistiller.engine.run.origin import same_images
from mdistiller.models import build_model
from tests.conftest import with_distiller
from tests.engine.test_trainer import settings


class Projecting(Distiller):
    """Forgets the parameters of its projection."""

    needs_teacher = False

    def __init__(self):
        super().__init__(build_model("resnet8", 3))
        self.projection = nn.Linear(3, 3)

    def forward_train(self, image, target, **kwargs):
        logits = self.projection(self.student(image)[0])
        return logits, {"loss_ce": nn.functional.cross_entropy(logits, target)}


def log_of(trainer):
    trainer.train()
    return trainer.folder.worklog.read_text()


def test_parameters_that_are_left_out(image_folder):
    distiller = Projecting()
    assert untrained(distiller) == ["projection.weight", "projection.bias"]
    log = log_of(with_distiller(build_trainer(settings(image_folder, epochs=1)), distiller))
    assert "warning: NONE.get_learnable_parameters lacks projection.weight, projection.bias, so they are not" in log
    distiller.projection.requires_grad_(False)
    assert untrained(distiller) == []


def test_settings_of_another_method(image_folder):
    log = log_of(build_trainer(settings(image_folder, "KD.TEMPERATURE", "2.0", "SFAKD.SIGMA", "0.3", epochs=1)))
    assert "note: NONE does not read KD.TEMPERATURE, SFAKD.SIGMA\n" in log
    assert unread_settings(load_cfg(None, ["DISTILLER.TYPE", "KD", "KD.TEMPERATURE", "2.0"])) == []


def test_files_of_equal_names_and_sizes_are_not_the_same_images():
    origin = {"train_content": "file names and sizes: 1a", "val_content": "file names and sizes: 1a"}
    assert not same_images(origin)
    assert same_images({"train_content": "pixels without padding: 1a", "val_content": "pixels: 1a"})
    assert not same_images({"train_content": "pixels without padding: 1a", "val_content": "pixels: 1b"})


def test_a_run_without_mistakes_has_no_line(image_folder):
    log = log_of(build_trainer(settings(image_folder, epochs=1)))
    assert "warning" not in log and "does not read" not in log


def test_validation_on_the_training_images(image_folder):
    (image_folder / "val").rename(image_folder / "other")
    (image_folder / "val").symlink_to(image_folder / "train")
    assert "warning: the validation images are the training images" in log_of(
        build_trainer(settings(image_folder, epochs=1))
    )


def softmax(model, inputs, outputs):
    return outputs[0].softmax(1), outputs[1]


def test_outputs_that_are_probabilities(image_folder):
    distiller = Projecting()
    distiller.projection.requires_grad_(False)
    distiller.student.register_forward_hook(softmax)
    log = log_of(with_distiller(build_trainer(settings(image_folder, epochs=1)), distiller))
    assert "warning: the outputs of the student are probabilities; losses expect logits" in log


@pytest.mark.parametrize(("method", "warned"), [("KD", True), ("AT", False)])
def test_a_teacher_that_returns_probabilities(image_folder, method, warned):
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    trainer = build_trainer(settings(image_folder, method=method, epochs=1))
    trainer.distiller.teacher.register_forward_hook(softmax)
    assert ("warning: the outputs of the teacher are probabilities" in log_of(trainer)) == warned


@pytest.mark.parametrize("training", [True, False])
def test_looking_at_the_outputs_changes_nothing(training):
    model = build_model("resnet8", 3).train(training)
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    assert not returns_probabilities(model, 16)
    model.register_forward_hook(softmax)
    assert returns_probabilities(model, 16)
    assert model.training == training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
