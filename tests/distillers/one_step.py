"""One training step of a distiller on a small pair, and the checks after it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.validate import check_settings
from mdistiller.models import build_model

PAIRS = [("resnet14", "resnet8"), ("wrn_16_1", "MobileNetV2"), ("vgg8", "ShuffleV1")]  # teacher, student
FROZEN = ("teacher.", "head.classifier.", "aligner.classifier.")  # the last two are the teacher's classifier


def build(method, *overrides, teacher="resnet14", student="resnet8"):
    torch.manual_seed(0)
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "DATASET.INPUT_SIZE", "32", *overrides])
    check_settings(cfg)
    return distiller_dict[method](build_model(student, 7), build_model(teacher, 7), cfg).train()


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(7, (4,), generator=generator)


def check_step(distiller, **batch):
    """Gradients reach every learnable parameter but no teacher, whose state does not change; losses are scalars."""
    before = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        logits, losses = distiller(**batch)
    assert logits.shape == (4, 7)
    for name, loss in losses.items():
        assert loss.shape == (), name
        assert loss.dtype == torch.float32, name
        assert loss.isfinite(), name
    sum(losses.values()).backward()
    check_gradients(distiller)
    assert not any(module.training for module in distiller.teacher.modules())
    assert all(torch.equal(value, before[key]) for key, value in distiller.teacher.state_dict().items())
    return losses


def check_gradients(distiller):
    """After a backward pass: every learnable parameter has a gradient, the teacher and its classifier have none."""
    learnable = {id(parameter) for parameter in distiller.get_learnable_parameters()}
    for name, parameter in distiller.named_parameters():
        if name.startswith(FROZEN):
            assert parameter.grad is None, name
            assert id(parameter) not in learnable, name
        else:
            assert id(parameter) in learnable, name
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def check_cross_entropy(distiller, ce_weight):
    """A step returns the student's logits, weighted cross-entropy, and one loss of the method.

    Returns:
        `(loss_kd, feats_student, feats_teacher)`, to compute the method's loss again.
    """
    image, target = batch()
    logits, losses = distiller(image=image, target=target)
    logits_student, feats_student = distiller.student(image)
    _, feats_teacher = distiller.teacher(image)
    assert set(losses) == {"loss_ce", "loss_kd"}
    torch.testing.assert_close(logits, logits_student)
    torch.testing.assert_close(losses["loss_ce"], ce_weight * F.cross_entropy(logits_student, target))
    return losses["loss_kd"], feats_student, feats_teacher


def check_student_deploys_alone(distiller):
    """The deployed model is the student with its own classifier."""
    image, _ = batch()
    distiller.eval()
    assert distiller.head is None
    torch.testing.assert_close(distiller(image=image), distiller.student(image)[0])
