"""The baseline loop has the loss, the training step and the images of MDistiller's loop."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from mdistiller.benchmark.baseline import BaselineLoop, baseline_loss
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.models import build_model


def settings(root, *overrides, method="KD"):
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    return load_cfg(
        None,
        [
            *("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(root), "DATASET.INPUT_SIZE", "16"),
            *("DISTILLER.TYPE", method, "DISTILLER.STUDENT", "resnet8", "DISTILLER.TEACHER", "resnet14"),
            *("DISTILLER.TEACHER_WEIGHTS", "teacher.pth", "SOLVER.BATCH_SIZE", "8", "SOLVER.LR", "0.02"),
            *overrides,
        ],
    )


def test_the_loss_is_that_of_kd(image_folder):
    kd = settings(image_folder).KD
    logits, teacher = (
        torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]),
        torch.tensor([[4.0, 0.0, 1.0], [1.0, 1.0, 2.0]]),
    )
    total = 0.0
    for row, soft, label in zip(logits.tolist(), teacher.tolist(), (1, 0)):

        def log_softmax(values, temperature):
            scaled = [value / temperature for value in values]
            norm = math.log(sum(map(math.exp, scaled)))
            return [value - norm for value in scaled]

        cross_entropy = -log_softmax(row, 1.0)[label]
        ours, theirs = log_softmax(row, 4.0), log_softmax(soft, 4.0)
        divergence = sum(math.exp(t) * (t - s) for s, t in zip(ours, theirs))
        total += 0.1 * cross_entropy + 0.9 * 16 * divergence
    target = torch.tensor([1, 0])
    assert baseline_loss(logits, teacher, target, kd).item() == pytest.approx(total / 2, rel=1e-5)
    assert baseline_loss(logits, None, target, kd) == nn.functional.cross_entropy(logits, target)


def test_a_step_is_that_of_sgd(image_folder):
    loop = BaselineLoop(settings(image_folder, "SOLVER.WEIGHT_DECAY", "0.01"))
    batch = next(iter(loop.loader))
    weight = loop.student.fc.weight
    before = weight.detach().clone()
    loop.student.train()
    loss, top1, top5 = loop.step(batch)
    assert not loop.teacher.training
    assert all(p.grad is None for p in loop.teacher.parameters())
    expected = before - 0.02 * (weight.grad + 0.01 * before)  # the first step has no momentum
    assert torch.allclose(weight.detach(), expected, atol=1e-7)
    with torch.no_grad():
        target = batch["target"]
        fresh = BaselineLoop(settings(image_folder)).student.train()
        logits = fresh(batch["image"])[0]  # from the same seed
        soft = loop.teacher(batch["image"])[0]
        assert loss == pytest.approx(baseline_loss(logits, soft, target, settings(image_folder).KD).item(), rel=1e-5)
        assert top1 == pytest.approx(100 * (logits.argmax(1) == target).float().mean().item())
    assert top5 == 100  # there are three classes


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_augmented_images_of_the_folder(image_folder, flip):
    loop = BaselineLoop(settings(image_folder, "DATASET.PADDING", "0", "DATASET.FLIP", str(flip)))
    seen = {}

    def batches():
        for batch in loop.loader:
            for image, target, index in zip(batch["image"], batch["target"], batch["index"]):
                seen[int(index)] = (image, int(target))
            yield batch

    message = loop.train_epoch(batches)
    assert sorted(seen) == list(range(36))
    normalize = loop.loader.dataset.transform.transforms[-1]
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalize.mean, normalize.std))
    for index, (image, target) in seen.items():
        assert target == index // 12
        pixels = ((image * std + mean) * 255).round().byte().permute(1, 2, 0).numpy()
        original = loop.loader.dataset.images[index]
        assert np.array_equal(pixels, original) or (flip and np.array_equal(pixels, original[:, ::-1]))
    assert re.match(r"data [\d.]+ s, step [\d.]+ s, loss [\d.]+, top-1 [\d.]+, top-5 100.00$", message)


def test_it_trains_without_a_teacher_too(image_folder):
    loop = BaselineLoop(settings(image_folder, method="NONE"))
    assert loop.teacher is None
    assert loop.loader.num_workers == 2
    losses = [loop.step(batch)[0] for _ in range(4) for batch in loop.loader]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize(
    ("words", "fault"),
    [("DATASET.AUGMENT none", "in memory, with none"), ("DATASET.IN_MEMORY no", "streamed, with pad")],
)
def test_unsupported_data_is_an_error(image_folder, words, fault):
    with pytest.raises(UserError, match=f"these are {fault}.*; set DATASET.AUGMENT pad_crop DATASET.IN_MEMORY yes, or"):
        BaselineLoop(settings(image_folder, *words.split()))
