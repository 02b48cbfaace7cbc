"""The trial step: what a distiller may return, and that nothing is lost by one that cannot train."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from mdistiller.distillers import Distiller
from mdistiller.engine.build import build_trainer
from mdistiller.engine.speed.precision import Precision
from mdistiller.engine.trial import trial_losses
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import with_distiller
from tests.engine.test_trainer import settings

FLOAT32 = Precision("cpu", None)


class Given(Distiller):
    """Returns what `make(logits)` returns."""

    needs_teacher = False

    def __init__(self, make):
        super().__init__(build_model("resnet8", 3))
        self.make = make
        self.projection = nn.Linear(3, 3)

    def forward_train(self, image, target, **kwargs):
        return self.make(self.student(image)[0])


def loss(logits):
    return {"loss_ce": logits.mean()}


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda logits: logits, "returned a Tensor; expected a tuple .logits .B, N., losses., where losses is a dict"),
        (lambda logits: None, "returned a NoneType"),
        (lambda logits: (logits, logits.mean()), "returned a tuple"),
        (lambda logits: (logits[:, :2], loss(logits)), r"returned logits of shape \[2, 2\] instead of \[2, 3\]"),
        (lambda logits: (None, loss(logits)), r"returned logits of shape \[\] instead of"),
        (lambda logits: (logits, {}), "returned the losses {}"),
        (lambda logits: (logits, {"loss_ce": 0.5}), "returned the losses {'loss_ce': 0.5}"),
        (lambda logits: (logits, loss(logits.detach())), "returned losses without a gradient .loss_ce."),
    ],
)
def test_what_cannot_train(make, fault):
    with pytest.raises(UserError, match=f"^Given.forward_train {fault}"):
        trial_losses(Given(make), 16, 3, 1, FLOAT32)


def test_nothing_changes():
    def draws(logits):
        return logits * (1 + random.random() + np.random.rand() + float(torch.rand(())))

    distiller = Given(lambda logits: (draws(logits), {**loss(logits), "loss_each": logits.sum(1)}))
    before = {key: value.clone() for key, value in distiller.state_dict().items()}
    state, others = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].tolist())
    assert trial_losses(distiller, 16, 3, 1, FLOAT32) == ["loss_ce", "loss_each"]
    assert torch.equal(torch.get_rng_state(), state)
    assert others == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(torch.equal(value, before[key]) for key, value in distiller.state_dict().items())
    assert not any(parameter.grad is not None for parameter in distiller.parameters())


def test_overwrite_keeps_a_run_that_nothing_can_replace(image_folder):
    build_trainer(settings(image_folder, epochs=1)).train()
    broken = with_distiller(build_trainer(settings(image_folder, epochs=1)), Given(lambda logits: logits))
    with pytest.raises(UserError, match="returned a Tensor"):
        broken.train(overwrite=True)
    assert broken.folder.student_best.is_file() and broken.folder.summary.is_file()
